"""Outputs whose width changes from batch to batch: one probe's fault costs that probe, no window and no other model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import orjson
from onnx import TensorProto, helper
from structlog.testing import capture_logs

from agent import wire
from agent.instrument import instrument
from agent.intake.queue import Captured
from agent.replay import output_types
from tests.agent.models import Builder, small_cnn
from tests.agent.serving.test_worker import counts, replay, request


def tagger() -> onnx.ModelProto:
    """(N, T, 4) to a score for each token, (N, T), as BERT's question answering gives."""
    b = Builder()
    x = b.node("Relu", [b.node("MatMul", ["tokens", b.weight("w1", 4, 6, fan_in=4)], "up")], "relu1")
    x = b.node("MatMul", [x, b.weight("w2", 6, 1, fan_in=6)], "score")
    model = b.model({"tokens": ["batch", "sequence", 4]}, {b.node("Squeeze", [x, _axes(b, 2)], "scores"): 2})
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("scores_out", TensorProto.FLOAT, ["batch", "sequence"]))
    return model


def cropped() -> onnx.ModelProto:
    """As `tagger`, but the output has two tokens less, which shape inference cannot name."""
    b = Builder()
    x = b.node("Relu", [b.node("MatMul", ["tokens", b.weight("w1", 4, 6, fan_in=4)], "up")], "relu1")
    x = b.node("MatMul", [x, b.weight("w2", 6, 1, fan_in=6)], "score")
    x = b.node("Squeeze", [x, _axes(b, 2)], "scores")
    for name, value in (("from", 1), ("to", -1), ("over", 1)):
        b.weights.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    return b.model({"tokens": ["batch", "sequence", 4]}, {b.node("Slice", [x, "from", "to", "over"], "inner"): 2})


def _axes(b: Builder, *axes: int) -> str:
    b.weights.append(helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes))
    return "axes"


def sentence(length: int, seed: int = 0) -> Captured:
    values = np.random.default_rng(seed).normal(size=(1, length, 4)).astype(np.float32)
    tensor = {"name": "tokens", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
    return Captured("digits", "1", orjson.dumps({"inputs": [tensor]}), None, None, None, 1500)


def test_an_output_as_long_as_the_sequence_is_pooled_over_it(tmp_path: Path) -> None:
    sent, _ = replay(tmp_path, tagger(), [sentence(4 + i % 5, seed=i) for i in range(20)])
    assert counts(sent) == {"tokens": 20, "relu1": 20, "scores_out": 20}
    scores = [item for e in sent if isinstance(e.body, wire.Window) for item in e.body.probes][-1]
    assert (scores.probe.channels, scores.probe.axis, scores.summary.channels) == (1, 0, 1)


def test_a_width_that_nobody_foretold_costs_that_probe_alone(tmp_path: Path) -> None:
    (unknown,) = [p for p in instrument(cropped(), output_types).probes if p.kind == "output"]
    assert unknown.channels is None
    lengths = [6, 6, 6, 7, 5, 6, 6]
    with capture_logs() as logs:
        sent, metrics = replay(tmp_path, cropped(), [sentence(length, i) for i, length in enumerate(lengths)])
    assert counts(sent) == {"tokens": 7, "relu1": 7}
    (said,) = [entry for entry in logs if entry["event"] == "probe.dropped"]
    assert (said["model"], said["probe"], said["reason"]) == ("digits", "inner_out", "width")
    assert "channels" in said["message"]
    assert "--probes" in said["message"]
    assert 'probe_dropped_total{model="digits",reason="width"} 7.0' in metrics


def test_other_models_keep_their_windows(tmp_path: Path) -> None:
    items = [sentence(5), sentence(9), *(request(np.ones((1, 1, 8, 8), np.float32), model="other") for _ in range(3))]
    sent, _ = replay(tmp_path, cropped(), items, others={"other": small_cnn()})
    found = counts(sent)
    assert found.pop("inner_out", 1) == 1, "in a window that was sent before the second width came, at most"
    assert found == {"tokens": 2, "relu1": 2} | dict.fromkeys(("image", "relu2", "relu3", "fc2_out"), 3) | {"relu1": 5}
