"""Channels and requests are found wherever a layout has them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from agent.instrument import InstrumentError, instrument
from agent.replay import Replayer, batching
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
    ("sequence whose maximum is taken in two stages", [node("MatMul", "x w", "m"), node("Relu", "m", "y")],
     ("N", 48, 6), (3, 48, 6), 2, {"w": floats(6, 5)}),
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


INPUTS: list[tuple[str, dict[str, tuple[int | str, ...]], dict[str, int | None]]] = [
    ("image with free sides", {"x": ("batch", 3, "height", "width")}, {"x": 0}),
    ("tokens", {"x": ("batch", "seq", 4)}, {"x": 0}),
    ("tokens and shared positions", {"x": ("batch", "seq", 4), "p": (1, "seq", 4)}, {"x": 0, "p": None}),
    ("tokens and a shared mask", {"x": ("batch", "seq", 4), "p": ("seq", 4)}, {"x": 0, "p": None}),
    ("names that say nothing", {"x": ("s0", "s1", 4), "p": (1, "s1", 4)}, {"x": 0, "p": None}),
    ("tokens and a state", {"x": ("batch", "seq", 4), "p": (2, "batch", 4)}, {"x": 0, "p": 1}),
    ("time first", {"x": ("T", "N", 4), "p": (1, "N", 4)}, {"x": 1, "p": 1}),
    ("time first, of fixed length", {"x": (16, "batch", 4)}, {"x": 1}),
    ("fixed batch and a shared table", {"x": (8, 3, 4), "p": (100, 4)}, {"x": 0, "p": None}),
]


@pytest.mark.parametrize(("inputs", "axes"), [case[1:] for case in INPUTS], ids=[case[0] for case in INPUTS])
def test_where_the_requests_of_an_input_lie(
    inputs: dict[str, tuple[int | str, ...]], axes: dict[str, int | None]
) -> None:
    """Output extents that an exporter named by itself do not matter."""
    nodes = [node("Relu", name, f"h_{name}") for name in inputs]
    nodes += [node("Identity", f"h_{name}", f"y_{name}") for name in inputs]
    model = graph(nodes, inputs, {f"y_{name}": len(shape) for name, shape in inputs.items()})
    for value in model.graph.output:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_dim_{place}"
    instrumented = instrument(model)
    assert instrumented.batch_axes == axes
    replayer = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30)
    assert replayer.batch_size == (8 if inputs["x"][0] == 8 else None)


def test_a_tensor_that_is_input_and_output_is_pooled_once() -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "y")]
    model = graph(nodes, {"x": ("N", 3, 6, 6)}, {"y": 4}, {"w": floats(4, 3, 3, 3)})
    model.graph.output.append(model.graph.input[0])
    _, pooled = observe(model, {"x": floats(2, 3, 6, 6)})
    assert list(pooled) == ["x", "y", "x:output"]
    np.testing.assert_array_equal(pooled["x"].mean, pooled["x:output"].mean)


@pytest.mark.parametrize("rank", [6, 7])
def test_ranks_beyond_what_pooling_operators_take(rank: int) -> None:
    shape = (3, *[2] * (rank - 2))
    model = graph([node("Relu", "x", "y")], {"x": ("N", *shape)}, {"y": rank})
    x = floats(4, *shape)
    _, pooled = observe(model, {"x": x})
    assert_pools(pooled["y"], np.maximum(x, 0), 1)


@pytest.mark.parametrize(
    "broken",
    [
        helper.make_node("Conv", ["x"], ["z"], name="broken", domain="my.own"),
        helper.make_node("Conv", [], ["z"], name="broken", domain="my.own"),
        helper.make_node("Mul", ["x"], [], name="broken", domain="my.own"),
        helper.make_node("LSTM", [], ["z"], name="broken", domain="my.own"),
        helper.make_node("Where", ["x"], ["z"], name="broken", domain="my.own"),
    ],
    ids=lambda broken: f"{broken.op_type} of {len(broken.input)}",
)
def test_a_malformed_node_is_an_error_or_left_alone(broken: onnx.NodeProto) -> None:
    model = graph([node("Relu", "x", "y"), broken], {"x": ("N", 4)}, {"y": 2}, domains=["my.own"])
    with contextlib.suppress(InstrumentError):  # any other exception fails the test
        assert [probe.name for probe in instrument(model).probes] == ["x", "y"]


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


def test_a_probe_whose_rows_are_not_the_requests_is_named() -> None:
    """Here the first axis holds requests and positions, which no shape tells beforehand."""
    nodes = [node("Reshape", "x shape", "r"), node("Relu", "r", "mixed"), node("Relu", "x", "y")]
    shape = np.array([-1, 2])
    model = graph(nodes, {"x": ("N", 6)}, {"y": 2, "mixed": 2}, {"shape": shape})
    replayer = Replayer(instrument(model), threads=1, gpu_mem_limit=1 << 30)
    assert list(replayer.run({"x": floats(4, 6)})) == ["x", "y"]
    assert list(replayer.misfits) == ["mixed"]
    assert "12" in replayer.misfits["mixed"]
