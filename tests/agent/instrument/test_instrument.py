"""Instrumented models compute what the served model computes, and their pooled values equal numpy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from agent.inspect_model import command
from agent.instrument import Instrumented, InstrumentError, instrument, open_model
from agent.replay import Replayer, ReplayError
from tests.agent.models import Builder, sequence_block, small_cnn

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def plain_run(model: onnx.ModelProto, inputs: dict[str, Any], extra: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    for name in dict.fromkeys(extra):
        if name not in present and name not in inputs:
            clone.graph.output.append(onnx.ValueInfoProto(name=name))
    session = ort.InferenceSession(clone.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, inputs), strict=True))


def assert_agrees_with_numpy(
    model: onnx.ModelProto, instrumented: Instrumented, inputs: dict[str, np.ndarray], rtol: float = 1e-5
) -> None:
    tensors = inputs | plain_run(model, inputs, tuple(probe.tensor for probe in instrumented.probes))
    pooled = Replayer(instrumented, threads=2, gpu_mem_limit=1 << 30).run(inputs)
    assert list(pooled) == [probe.name for probe in instrumented.probes]
    for probe in instrumented.probes:
        value = tensors[probe.tensor].astype(np.float64)
        axes = tuple(axis for axis in range(1, value.ndim) if axis != probe.axis)
        got = pooled[probe.name]
        np.testing.assert_allclose(got.mean, value.mean(axes), rtol=max(rtol, 1e-4), atol=1e-5, err_msg=probe.name)
        np.testing.assert_allclose(got.maximum, value.max(axes), rtol=rtol, atol=1e-6, err_msg=probe.name)
        np.testing.assert_allclose(got.fraction, (value > 0).mean(axes), rtol=rtol, atol=1e-6, err_msg=probe.name)


@pytest.mark.parametrize("opset", [9, 12, 13, 17, 18, 21])
@pytest.mark.parametrize(("make", "shape"), [(small_cnn, (5, 1, 8, 8)), (sequence_block, (5, 7, 8))])
def test_pooled_values_equal_numpy(make: Any, shape: tuple[int, ...], opset: int) -> None:
    model = make(opset)
    inputs = {model.graph.input[0].name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    assert_agrees_with_numpy(model, instrument(model), inputs)


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_reference_architectures_agree_with_numpy(path: Path) -> None:
    model = onnx.load(path)
    value = next(v for v in model.graph.input if v.name not in {w.name for w in model.graph.initializer})
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    inputs = {value.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    assert_agrees_with_numpy(model, instrument(model), inputs)


def test_outputs_are_bit_for_bit_the_served_models() -> None:
    model = small_cnn()
    before = model.SerializeToString()
    inputs = {"image": np.random.default_rng(0).normal(size=(9, 1, 8, 8)).astype(np.float32)}
    instrumented = instrument(model)
    assert model.SerializeToString() == before, "instrument changed its argument"
    session = ort.InferenceSession(instrumented.model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(list(instrumented.outputs), inputs)
    for name, value in zip(instrumented.outputs, got, strict=True):
        np.testing.assert_array_equal(value, plain_run(model, inputs)[name])


def test_names_are_deterministic_and_probes_in_graph_order() -> None:
    first, second = instrument(small_cnn()), instrument(small_cnn())
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
    assert [probe.name for probe in first.probes] == ["image", "relu1", "relu2", "relu3", "fc2_out"]
    assert [probe.channels for probe in first.probes] == [1, 4, 6, 5, 3]
    assert [probe.position for probe in first.probes] == [0, 1, 2, 3, 4]


def test_channels_last_input_behind_a_transpose() -> None:
    b = Builder()
    x = b.node("Transpose", ["image"], "to_nchw", perm=[0, 3, 1, 2])
    x = b.node("Relu", [b.conv(x, "conv", 3, 4)], "relu")
    x = b.node("Transpose", [x], "to_nhwc", perm=[0, 2, 3, 1])
    model = b.model({"image": ["N", 8, 8, 3]}, {b.node("Relu", [x], "relu_nhwc"): 4})
    instrumented = instrument(model)
    assert [probe.axis for probe in instrumented.probes] == [3, 1, 3]
    assert_agrees_with_numpy(model, instrumented, {"image": np.random.default_rng(0).random((2, 8, 8, 3), np.float32)})


def test_half_precision_is_pooled_in_float() -> None:
    b = Builder()
    half = b.node("Cast", ["image"], "half", to=TensorProto.FLOAT16)
    x = b.node("Cast", [b.node("Relu", [half], "relu")], "back", to=TensorProto.FLOAT)
    model = b.model({"image": ["N", 3, 4, 4]}, {x: 4})
    inputs = {"image": np.random.default_rng(0).random((2, 3, 4, 4), np.float32)}
    # On CPU onnxruntime computes half-precision Relu in float32, so the two runs round differently.
    assert_agrees_with_numpy(model, instrument(model), inputs, rtol=1e-3)


def test_one_nan_stays_in_its_channel() -> None:
    image = np.random.default_rng(0).random((4, 3, 8, 8), np.float32)
    image[2, 1, 3, 3] = np.nan
    b = Builder()
    model = b.model({"image": ["N", 3, 8, 8]}, {b.node("Relu", ["image"], "relu"): 4})
    got = Replayer(instrument(model), threads=1, gpu_mem_limit=1 << 30).run({"image": image})["image"]
    assert np.argwhere(~np.isfinite(got.mean)).tolist() == [[2, 1]]


def test_a_model_without_rectifier_is_refused() -> None:
    b = Builder()
    model = b.model({"x": ["N", 4]}, {b.node("Tanh", ["x"], "squash"): 2})
    with pytest.raises(InstrumentError, match=r"no rectifier that can be probed: squash \(Tanh\)"):
        instrument(model)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100, b"PK\x03\x04zip"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InstrumentError, match="not an ONNX model"):
        open_model(path)


def test_a_batch_of_the_wrong_shape_is_refused() -> None:
    replayer = Replayer(instrument(small_cnn()), threads=1, gpu_mem_limit=1 << 30)
    with pytest.raises(ReplayError, match="cannot run the batch"):
        replayer.run({"image": np.ones((2, 1, 8), np.float32)})


def test_inspect_prints_table_and_json(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(small_cnn(), path)
    table = CliRunner().invoke(command, [str(path)])
    assert "relu2" in table.output
    assert "5 probes, 19 channels" in table.output
    document = CliRunner().invoke(command, [str(path), "--json"])
    assert '"not_probed": []' in document.output
    assert '"axis": 1' in document.output
    assert json.loads(document.stdout)["timed"] is None
    timed = CliRunner().invoke(command, [str(path), "--json", "--time", "--threads", "1", "--provider", "cpu"])
    told = json.loads(timed.stdout)["timed"]
    assert told["ratio"] > 1 and told["within_budget"] and told["groups"] >= 1
    missing = CliRunner().invoke(command, [str(tmp_path / "none.onnx")])
    assert missing.exit_code == 1
    assert "no such file" in missing.output
