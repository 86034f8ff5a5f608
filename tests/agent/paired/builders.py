"""Models, served models and requests for tests of paired replay."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from agent import wire
from agent.capture.engine import Engine
from agent.capture.gauges import ModelGauges
from agent.instrument import Instrumented, instrument
from agent.intake.catalog import ModelMetadata
from agent.intake.tensors import TensorSpec
from agent.metrics import AgentMetrics
from agent.paired.settings import PairedSettings
from agent.paired.sums import Tolerance
from agent.replay import output_types
from agent.serving.models import Served
from agent.serving.repository import Entry, digest
from tests.agent.models import Builder

CPU = "CPUExecutionProvider"
IMAGE = TensorSpec("image", "FP32", (-1, 1, 8, 8))
LOGITS = TensorSpec("fc2_out", "FP32", (-1, 3))
SPAN = (60_000, 120_000)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 1, 8, 8), dtype=np.float32)


def settings(**changed: Any) -> PairedSettings:
    plain: dict[str, Any] = {"rate": 1.0, "duty_cycle": 1.0, "tolerance": Tolerance(1e-3, 1e-3)}
    return PairedSettings(**{**plain, **changed})


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._batches = iter([{"image": images(8, seed)} for seed in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantized(folder: Path, model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """The model in int8, as onnxruntime's quantizer makes it: ``form`` is "QDQ" or "QOperator"."""
    source, target = folder / "float.onnx", folder / f"{form}.onnx"
    onnx.save(model, source)
    logging.disable(logging.WARNING)  # advice about preprocessing
    try:
        quantize_static(
            source,
            target,
            _Calibration(),
            quant_format=QuantFormat[form],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(target)


def quantized_probes(form: str) -> tuple[wire.Probe, ...]:
    """The activations of the quantized `small_cnn`, whose rectifiers are zero points, and its output."""
    tensors = {
        "QDQ": (
            "relu1_out_QuantizeLinear_Output",
            "relu2_out_QuantizeLinear_Output",
            "relu3_out_QuantizeLinear_Output",
        ),
        "QOperator": ("conv1_out_quantized", "conv2_out_quantized", "fc1_out_quantized"),
    }[form]
    hidden = [
        wire.Probe(tensor.split("_out")[0] + "_out", "QuantizeLinear", tensor, None, 1, "activation", place + 1, True)
        for place, tensor in enumerate(tensors)
    ]
    return (*hidden, wire.Probe("fc2_out", "Output", "fc2_out", None, 1, "output", 4, False))


def permuted(model: onnx.ModelProto) -> onnx.ModelProto:
    """`small_cnn` with the channels of its first layer in another order: the same function, other activations."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    order = np.array([2, 0, 3, 1])
    changes: dict[str, Any] = {"conv1_w": (order,), "conv1_b": (order,), "conv2_w": (slice(None), order)}
    for tensor in clone.graph.initializer:
        if tensor.name in changes:
            values = numpy_helper.to_array(tensor)[changes[tensor.name]]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return clone


def recurrent(x: Sequence[int | str], state: Sequence[int | str], *, requests_first: bool = False) -> onnx.ModelProto:
    """A GRU of 5 over ``x`` (steps, requests, 3) that starts from ``state`` (1, requests, 5).

    Its outputs are relu_out (steps, requests, 5) and the new state. With ``requests_first``, ``x`` is
    (requests, steps, 3).
    """
    b = Builder()
    steps = b.node("Transpose", ["x"], "turn", perm=[1, 0, 2]) if requests_first else "x"
    weights = [b.weight("gru_w", 1, 15, 3), b.weight("gru_r", 1, 15, 5)]
    b.nodes.append(
        onnx.helper.make_node("GRU", [steps, *weights, "", "", "state"], ["all", "new_state"], "gru", hidden_size=5)
    )
    b.weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    y = b.node("Relu", [b.node("Squeeze", ["all", "one"], "squeeze")], "relu")
    return b.model({"x": x, "state": state}, {y: 3, "new_state": 3})


def with_weight(model: onnx.ModelProto, weight: str, values: Sequence[float]) -> onnx.ModelProto:
    """The model with other values in a weight of one axis."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    for tensor in clone.graph.initializer:
        if tensor.name == weight:
            tensor.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), weight))
    return clone


def bit_flipped(model: onnx.ModelProto, weight: str, bit: int = 30) -> onnx.ModelProto:
    """The model with one bit of a weight's first element flipped, as a failing memory would."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    for tensor in clone.graph.initializer:
        if tensor.name == weight:
            values = numpy_helper.to_array(tensor).copy()
            values.reshape(-1).view(np.uint32)[0] ^= np.uint32(1 << bit)
            tensor.CopyFrom(numpy_helper.from_array(values, weight))
    return clone


def serve(
    path: Path,
    model: onnx.ModelProto,
    *,
    probes: Sequence[wire.Probe] | None = None,
    provider: str = CPU,
    batch_size: int | None = None,
    outputs: Sequence[TensorSpec] = (LOGITS,),
) -> Served:
    """The served model in ``path`` (`<model>/<version>/model.onnx`), without the session that replays it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    status = path.stat()
    entry = Entry(path.parent.parent.name, path.parent.name, path, ((path.name, status.st_mtime_ns, status.st_size),))
    made = instrument(model, output_types) if probes is None else None
    known = SimpleNamespace(
        probes=tuple(probes or ()) if made is None else made.probes,
        batch_axes={"image": 0} if made is None else made.batch_axes,
        request_axes={probe.name: 0 for probe in probes or ()} if made is None else made.request_axes,
    )
    return Served(
        entry,
        frozenset((path.name,)),
        digest(path),
        cast(Instrumented, known),
        cast(Engine, SimpleNamespace(provider=provider, batch_size=batch_size)),
        ModelMetadata(entry.model, entry.version, True, (IMAGE,), tuple(outputs)),
        ModelGauges(AgentMetrics(), entry.model, entry.version),
    )


def by_name(comparison: wire.Comparison) -> dict[str, wire.ProbeComparison]:
    return {item.probe.name: item for item in comparison.probes}
