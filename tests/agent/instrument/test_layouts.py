"""Channels and requests are found wherever a layout has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from agent import batching
from agent.instrument import instrument
from agent.replay import Replayer
from tests.agent.instrument.checks import assert_pools, execution_order, floats, graph, node, observe, plain

LAYOUTS: list[tuple[str, list[onnx.NodeProto], tuple[int | str, ...], tuple[int, ...], int, dict[str, Any]]] = [
    ("one-dimensional convolution", [node("Conv", "x w", "c"), node("Relu", "c", "y")], ("N", 3, 9), (2, 3, 9), 1,
     {"w": floats(5, 3, 3)}),
    ("three-dimensional convolution", [node("Conv", "x w", "c"), node("Relu", "c", "y")], ("N", 2, 5, 5, 5),
     (2, 2, 5, 5, 5), 1, {"w": floats(4, 2, 3, 3, 3)}),
    ("convolution squeezed to one dimension",
     [node("Unsqueeze", "x last", "u"), node("Conv", "u w", "c"), node("Squeeze", "c last", "s"),
      node("Relu", "s", "y")],
     ("N", 3, 9), (2, 3, 9), 1, {"w": floats(5, 3, 3, 1), "last": np.array([-1])}),
    ("channels last behind a transpose",
     [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t w", "c"),
      node("Transpose", "c", "b", perm=[0, 2, 3, 1]), node("Relu", "b", "y")],
     ("N", 6, 6, 3), (2, 6, 6, 3), 3, {"w": floats(4, 3, 3, 3)}),
    ("patches as a sequence, channels in the middle",
     [node("Conv", "x w", "c", strides=[2, 2]), node("Reshape", "c shape", "r"), node("Relu", "r", "y")],
     ("N", 3, 8, 8), (2, 3, 8, 8), 1, {"w": floats(5, 3, 2, 2), "shape": np.array([0, 5, 16])}),
    ("dense", [node("Gemm", "x w", "g"), node("Relu", "g", "y")], ("N", 6), (3, 6), 1, {"w": floats(6, 4)}),
    ("sequence", [node("MatMul", "x w", "m"), node("Relu", "m", "y")], ("N", "T", 6), (3, 5, 6), 2,
     {"w": floats(6, 4)}),
    ("sequence of fixed length", [node("MatMul", "x w", "m"), node("Relu", "m", "y")], ("N", 7, 6), (3, 7, 6), 2,
     {"w": floats(6, 4)}),
    ("rectified attention scores",
     [node("Transpose", "x", "k", perm=[0, 2, 1]), node("MatMul", "x k", "s"), node("Relu", "s", "y")],
     ("N", 5, 6), (3, 5, 6), 2, {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "shape", "extents", "axis", "weights"), [case[1:] for case in LAYOUTS], ids=[case[0] for case in LAYOUTS]
)
def test_layout(
    nodes: list[onnx.NodeProto],
    shape: tuple[int | str, ...],
    extents: tuple[int, ...],
    axis: int,
    weights: dict[str, Any],
) -> None:
    model = graph(nodes, {"x": shape}, {"y": 5 if len(extents) == 5 else len(extents)}, weights, opset=17)
    inputs = {"x": floats(*extents)}
    instrumented, pooled = observe(model, inputs)
    probe = next(probe for probe in instrumented.probes if probe.name == "y")
    assert probe.axis == axis
    assert_pools(pooled["y"], plain(model, inputs)["y"], axis)


def test_tokens_in_rows_are_folded_back_to_requests() -> None:
    """Exporters flatten (N, T, C) to (N * T, C) before a Gemm: the statistical unit stays the request."""
    nodes = [
        node("Reshape", "x flat", "rows"),
        node("Gemm", "rows w", "g"),
        node("Relu", "g", "hidden"),
        node("Gemm", "hidden v", "h"),
        node("Reshape", "h back", "y"),
    ]
    weights = {"w": floats(6, 8), "v": floats(8, 6), "flat": np.array([-1, 6]), "back": np.array([-1, 5, 6])}
    model = graph(nodes, {"x": ("N", 5, 6)}, {"y": 3}, weights)
    inputs = {"x": floats(3, 5, 6)}
    instrumented, pooled = observe(model, inputs)
    assert {probe.name: probe.channels for probe in instrumented.probes} == {"x": 6, "hidden": 8, "y": 6}
    assert_pools(pooled["hidden"], plain(model, inputs, ["hidden"])["hidden"].reshape(3, 5, 8), 2)


def test_recurrent_state_has_its_requests_on_the_second_axis() -> None:
    lstm = helper.make_node("GRU", ["x", "w", "r", "", "", "state"], ["all", "new_state"], name="gru", hidden_size=4)
    nodes = [lstm, node("Squeeze", "all one", "s"), node("Relu", "s", "y")]
    weights = {"w": floats(1, 12, 3), "r": floats(1, 12, 4), "one": np.array([1])}
    model = graph(nodes, {"x": ("T", "N", 3), "state": (1, "N", 4)}, {"y": 3, "new_state": 3}, weights)
    inputs = {"x": floats(6, 2, 3), "state": floats(1, 2, 4)}
    instrumented, pooled = observe(model, inputs)
    assert instrumented.batch_axes == {"x": 1, "state": 1}
    assert [probe.name for probe in instrumented.probes] == ["x", "state", "y", "new_state"]
    assert_pools(pooled["y"], plain(model, inputs)["y"], channels=2, requests=1)
    assert_pools(pooled["state"], inputs["state"], channels=2, requests=1)


def test_an_input_that_all_requests_share_is_not_stacked() -> None:
    nodes = [node("Mul", "x factor", "m"), node("Relu", "m", "y")]
    model = graph(nodes, {"x": ("N", 4), "factor": (4,)}, {"y": 2})
    instrumented = instrument(model)
    assert instrumented.batch_axes == {"x": 0, "factor": None}
    assert {item.name: item.reason for item in instrumented.not_probed} == {
        "factor": "its rank is 1: it has no channel axis beside the requests"
    }
    one = {"x": floats(1, 4), "factor": floats(4)}
    batch = batching.stack([one, one], instrumented.batch_axes)
    pooled = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).run(batch)
    assert pooled["y"].mean.shape == (2, 4)


def test_free_height_and_width_are_not_taken_for_the_batch() -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "y")]
    model = graph(nodes, {"x": (1, 3, "height", "width")}, {"y": 4}, {"w": floats(4, 3, 3, 3)})
    instrumented = instrument(model)
    assert instrumented.batch_axes == {"x": 0}
    assert [probe.axis for probe in instrumented.probes] == [1, 1]


def test_several_inputs_are_each_probed() -> None:
    nodes = [node("Concat", "a b", "c", axis=1), node("Gemm", "c w", "g"), node("Relu", "g", "y")]
    model = graph(nodes, {"a": ("N", 3), "b": ("N", 2)}, {"y": 2}, {"w": floats(5, 4)})
    instrumented, pooled = observe(model, {"a": floats(6, 3), "b": floats(6, 2)})
    assert [(probe.name, probe.kind) for probe in instrumented.probes] == [
        ("a", "input"), ("b", "input"), ("y", "activation"),
    ]  # fmt: skip
    assert pooled["b"].mean.shape == (6, 2)


def test_each_activation_is_pooled_before_the_next_layer_runs(tmp_path: Path) -> None:
    """Else every activation of the model would be alive at once: the order of the added nodes decides."""
    nodes, weights = [], {}
    x = "x"
    for layer in range(6):
        weights[f"w{layer}"] = 0.1 * floats(4, 4, 3, 3, seed=layer)
        nodes.append(node("Conv", f"{x} w{layer}", f"conv{layer}", pads=[1] * 4))
        nodes.append(node("Relu", f"conv{layer}", f"y{layer}"))
        x = f"y{layer}"
    instrumented = instrument(graph(nodes, {"x": ("N", 4, 8, 8)}, {"y5": 4}, weights))
    order = execution_order(instrumented.model, {"x": floats(1, 4, 8, 8)}, tmp_path)
    convolutions = [place for place, name in enumerate(order) if name.startswith(("conv", "y"))]
    poolings = [
        [place for place, name in enumerate(order) if name.startswith(f"reluscope:y{layer}")] for layer in range(6)
    ]
    for layer in range(4):
        # The convolution that reads the layer may come first, the one behind it may not.
        assert max(poolings[layer]) < convolutions[layer + 2], f"layer {layer} was pooled late: {order}"
