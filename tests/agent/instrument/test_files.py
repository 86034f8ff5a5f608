"""Models are read without their weights, whatever their size, and written again with every byte of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from agent.instrument import InstrumentError, instrument, open_model
from agent.instrument.files import EXTERNAL_FOLDER
from agent.replay import Replayer, ReplayError, output_types
from tests.agent.instrument.checks import floats, graph, node, plain

WIDTH = 256


def dense(seed: int = 0) -> onnx.ModelProto:
    weights = {"w": floats(WIDTH, WIDTH, seed=seed), "v": floats(WIDTH, 4), "b": floats(4)}
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("Gemm", "r v b", "y")]
    return graph(nodes, {"x": ("N", WIDTH)}, {"y": 2}, weights)


def run(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    instrumented = instrument(open_model(path), output_types)
    pooled = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).run({"x": x})
    return {name: value.mean for name, value in pooled.items()}


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    model, x = dense(), floats(3, WIDTH)
    onnx.save(model, tmp_path / "model.onnx")
    opened = open_model(tmp_path / "model.onnx")
    assert set(opened.weights) == {"w", "v"}
    assert opened.proto.ByteSize() < 1500
    assert {tensor.name: list(tensor.dims) for tensor in opened.proto.graph.initializer}["w"] == [WIDTH, WIDTH]
    expected = plain(model, {"x": x}, ["r"])
    got = run(tmp_path / "model.onnx", x)
    np.testing.assert_allclose(got["r"], expected["r"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got["y"], expected["y"])


@pytest.mark.parametrize("limit", [1 << 26, 1], ids=["bytes", "temporary file"])
def test_written_again_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("agent.instrument.files._IN_MEMORY", limit)
    model = dense()
    onnx.save(model, tmp_path / "model.onnx")
    instrumented = instrument(open_model(tmp_path / "model.onnx"))
    with instrumented.session_model() as made:
        assert isinstance(made.source, bytes) == (limit > 1)
        whole = onnx.load_from_string(made.source) if isinstance(made.source, bytes) else onnx.load(made.source)
        path = None if isinstance(made.source, bytes) else Path(made.source)
    assert path is None or not path.exists(), "the temporary file is left behind"
    before = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    after = {tensor.name: tensor.SerializeToString() for tensor in whole.graph.initializer}
    assert {name: after[name] for name in before} == before
    assert whole.SerializeToString(deterministic=True) == instrumented.model.SerializeToString(deterministic=True)


def test_a_file_that_was_replaced_is_not_taken_for_the_one_that_was_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(dense(), path)
    instrumented = instrument(open_model(path))
    onnx.save(dense(seed=1), path)
    with pytest.raises(InstrumentError, match="has changed since it was read"), instrumented.session_model():
        pass
    with pytest.raises(ReplayError, match="has changed since it was read"):
        Replayer(instrumented.subset({"r"}), threads=1, gpu_mem_limit=1 << 30)


@pytest.mark.parametrize("threshold", [0, 1024], ids=["all external", "large external"])
def test_external_data(tmp_path: Path, threshold: int) -> None:
    model, x = dense(), floats(3, WIDTH)
    expected = plain(model, {"x": x}, ["r"])
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=threshold, location="weights")
    opened = open_model(tmp_path / "model.onnx")
    assert opened.external_files == (tmp_path / "weights",)
    with instrument(opened).session_model() as made:
        assert made.config == {EXTERNAL_FOLDER: str(tmp_path)}
    got = run(tmp_path / "model.onnx", x)
    np.testing.assert_allclose(got["r"], expected["r"], rtol=1e-5, atol=1e-5)
    (tmp_path / "weights").unlink()
    with pytest.raises(InstrumentError, match=r"weights: no such file; model\.onnx has its weights there"):
        open_model(tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_model_above_two_gibibytes(tmp_path: Path) -> None:
    """Its weights are a sparse file, zero but for one row, so that it costs the disk nothing."""
    rows, columns = 35_000, 16_000
    size = 4 * rows * columns
    assert size > 2 << 30
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(size)
        file.seek(4 * columns)  # row 1
        file.write(np.ones(columns, "<f4").tobytes())
    large = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[rows, columns], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(size))):
        large.external_data.add(key=key, value=value)
    model = graph(
        [node("Gather", "w x", "rows"), node("Relu", "rows", "r"), node("Identity", "r", "y")],
        {},
        {"y": 2},
    )
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.INT64, ["N"]))
    model.graph.initializer.append(large)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    instrumented = instrument(open_model(tmp_path / "model.onnx"), output_types)
    pooled = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).run({"x": np.array([0, 1, 2])})
    np.testing.assert_array_equal(pooled["r"].mean.sum(axis=1), [0, columns, 0])


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", b"\x00" * 100, b"PK\x03\x04zip", b"\x3a\xff\xff\xff\xff\x0f", b"\x08" + b"\xff" * 20],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InstrumentError, match=r"model\.onnx: not an ONNX model"):
        open_model(tmp_path / "model.onnx")


def test_a_file_cut_short_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = dense().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in [*range(1, 200), *range(200, len(whole), 9973)]:
        path.write_bytes(whole[:length])
        try:
            opened = open_model(path)
        except InstrumentError:
            continue
        # What is left may by chance be well-formed; then it must load as onnx itself would load it.
        assert opened.proto.graph.node == onnx.load(path).graph.node


def test_local_functions_are_looked_into() -> None:
    function = helper.make_function(
        "local", "Block", ["a"], ["b"], [node("Neg", "a", "n"), node("Relu", "n", "b")], [helper.make_opsetid("", 17)]
    )
    model = graph([helper.make_node("Block", ["x"], ["y"], domain="local")], {"x": ("N", 3)}, {"y": 2})
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.functions.append(function)
    x = floats(4, 3)
    instrumented = instrument(model, output_types)
    assert [probe.op for probe in instrumented.probes] == ["Input", "Relu"]
    pooled = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).run({"x": x})
    np.testing.assert_array_equal(pooled[instrumented.probes[1].name].mean, np.maximum(-x, 0))
    assert ort.InferenceSession(instrumented.model.SerializeToString()).run(["y"], {"x": x})[0].min() == 0


def test_optional_and_sequence_outputs_are_named_as_not_probed() -> None:
    model = graph([node("Relu", "x", "r"), node("SequenceConstruct", "r", "s")], {"x": ("N", 3)}, {"r": 2})
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_value_info("s", sequence))
    reasons = {item.name: item.reason for item in instrument(model, output_types).not_probed}
    assert reasons == {"s": "its type is sequence, not a dense tensor"}
