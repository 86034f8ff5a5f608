"""What a session does beside its values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from agent.instrument import instrument
from agent.replay import Replayer, ReplayError
from tests.agent.models import Builder


def test_onnxruntime_prints_nothing_of_a_run_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    b = Builder()
    x = b.node("Relu", [b.node("Gather", [b.weight("table", 4, 6), "ids"], "look_up")], "relu")
    graph = b.model({"ids": ["N"]}, {x: 2}).graph
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    replayer = Replayer(instrument(model), threads=1, gpu_mem_limit=1, provider="cpu")
    with pytest.raises(ReplayError, match=r"INVALID_ARGUMENT in Gather node 'look_up'$"):
        replayer.run({"ids": np.array([99])})
    assert capfd.readouterr() == ("", "")
