"""Models that onnxruntime quantized or optimised offline: same probes, same outputs, pooled values as dequantized."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from agent.instrument import instrument, open_model
from agent.replay import Replayer, output_types
from tests.agent.instrument.checks import assert_pools, floats, observe, plain
from tests.agent.models import Builder

IMAGES = {"image": floats(3, 3, 8, 8)}


def residual_cnn(width: int = 16) -> onnx.ModelProto:
    b = Builder()
    x = b.node("Relu", [b.conv("image", "conv1", 3, width)], "relu1")
    y = b.node("Relu", [b.conv(x, "conv2", width, width)], "relu2")
    x = b.node("Relu", [b.node("Add", [x, y], "add")], "relu_add")
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    x = b.node("Relu", [b.gemm(x, "fc1", width, 8)], "relu3")
    return b.model({"image": ["N", 3, 8, 8]}, {b.gemm(x, "fc2", 8, 3): 2})


class Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._batches: Iterator[dict[str, Any]] = iter([{"image": floats(4, 3, 8, 8, seed=i)} for i in range(3)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def quantized(tmp_path: Path, how: QuantFormat, kind: QuantType, **options: Any) -> onnx.ModelProto:
    onnx.save(residual_cnn(), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", Images(), quant_format=how, activation_type=kind, **options
    )
    return onnx.load(tmp_path / "int8.onnx")


def dequantized(model: onnx.ModelProto, tensor: str) -> NDArray[Any]:
    value = plain(model, IMAGES, [tensor])[tensor]
    if value.dtype.kind == "f":
        return value
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    maker = next(item for item in model.graph.node if tensor in item.output)
    scale = {"QuantizeLinear": 1, "QGemm": 7}.get(maker.op_type, 6)
    zero_point = constants[maker.input[scale + 1]].astype(np.int32)
    return np.asarray((value.astype(np.int32) - zero_point) * constants[maker.input[scale]])


@pytest.mark.parametrize("kind", [QuantType.QUInt8, QuantType.QInt8], ids=["uint8", "int8"])
@pytest.mark.parametrize("how", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["QDQ", "QOperator"])
def test_zero_points_play_the_rectifier(tmp_path: Path, how: QuantFormat, kind: QuantType) -> None:
    model = quantized(tmp_path, how, kind)
    instrumented, pooled = observe(model, IMAGES)
    probes = [probe for probe in instrumented.probes if probe.kind == "activation"]
    qdq = how == QuantFormat.QDQ
    expected = ["relu1_out", "relu2_out", "relu_add_out", "relu3_out"]
    assert [probe.name for probe in probes] == (expected if qdq else ["conv1_out", "conv2_out", "add_out", "fc1_out"])
    assert all(probe.exact_zero for probe in probes)
    assert [probe.channels for probe in probes] == [16, 16, 16, 8]
    for probe in probes:
        assert_pools(pooled[probe.name], dequantized(model, probe.tensor), 1)
        assert 0.2 < pooled[probe.name].fraction.mean() < 1


def test_a_relu_kept_before_quantizing_is_probed_once_and_stays_in_integers(tmp_path: Path) -> None:
    model = quantized(tmp_path, QuantFormat.QDQ, QuantType.QInt8, extra_options={"ActivationSymmetric": True})
    instrumented, pooled = observe(model, IMAGES)
    probes = [probe for probe in instrumented.probes if probe.kind == "activation"]
    assert [(probe.name, probe.op) for probe in probes] == [
        ("relu1", "Relu"), ("relu2", "Relu"), ("relu_add", "Relu"), ("relu3", "Relu"),
    ]  # fmt: skip
    for probe in probes:
        assert_pools(pooled[probe.name], dequantized(model, probe.tensor), 1)

    with instrumented.session_model() as ours:
        assert isinstance(ours.source, bytes)
        plainly = integer_layers(model.SerializeToString(), {}, tmp_path)
        assert integer_layers(ours.source, ours.config, tmp_path) >= plainly


def integer_layers(model: bytes, config: dict[str, str], folder: Path) -> int:
    """How many layers onnxruntime computes in integers."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    for key, setting in config.items():
        options.add_session_config_entry(key, setting)
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return sum(item.op_type in ("QLinearConv", "QGemm") for item in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("width", [16, 12])
def test_models_optimised_offline(tmp_path: Path, level: str, width: int) -> None:
    """At the highest level tensors lie in blocks of channels, padded where their number is no multiple."""
    model = residual_cnn(width)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    instrumented = instrument(open_model(tmp_path / "optimised.onnx"), output_types)
    probes = [probe for probe in instrumented.probes if probe.kind == "activation"]
    assert len(probes) == 4
    pooled = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).run(IMAGES)
    tensors = plain(model, IMAGES, ["relu1_out", "relu2_out", "relu_add_out", "relu3_out"])
    for probe, tensor in zip(probes, ("relu1_out", "relu2_out", "relu_add_out", "relu3_out"), strict=True):
        channels = tensors[tensor].shape[1]
        got = pooled[probe.name]
        assert probe.channels is not None
        assert probe.channels >= channels
        np.testing.assert_array_equal(got.maximum[:, channels:], 0)
        kept = type(got)(got.mean[:, :channels], got.maximum[:, :channels], got.fraction[:, :channels])
        assert_pools(kept, tensors[tensor], 1, rtol=1e-4)
