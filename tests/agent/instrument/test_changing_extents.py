"""What has no channels, for its extents change from request to request, is one channel; mere names are no freedom."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from agent.instrument import Instrumented, instrument
from agent.replay import output_types
from tests.agent.instrument.checks import assert_pools, floats, graph, node, observe, plain

TWO = np.array([2])


def assert_one_channel(instrumented: Instrumented, name: str) -> None:
    (probe,) = [probe for probe in instrumented.probes if probe.name == name]
    assert (probe.channels, probe.axis) == (1, 0)


def declare(model: onnx.ModelProto, *shape: str | int) -> onnx.ModelProto:
    """The model's only output with that shape."""
    name = model.graph.output[0].name
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


CASES: list[tuple[str, list[onnx.NodeProto], dict[str, tuple[int | str, ...]], tuple[str, ...], dict[str, Any]]] = [
    (
        "a score for each token",
        [node("Relu", "x", "r"), node("MatMul", "r w", "m"), node("Squeeze", "m two", "y")],
        {"x": ("N", "T", 4)}, ("N", "T"), {"w": floats(4, 1), "two": TWO},
    ),
    (
        "a score for each token, time first",
        [node("Relu", "x", "r"), node("MatMul", "r w", "m"), node("Squeeze", "m two", "y")],
        {"x": ("T", "N", 4)}, ("T", "N"), {"w": floats(4, 1), "two": TWO},
    ),
    (
        "attention scores of one head",
        [node("Transpose", "x", "k", perm=[0, 2, 1]), node("MatMul", "x k", "s"), node("Relu", "s", "y")],
        {"x": ("N", "T", 4)}, ("N", "T", "T"), {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "inputs", "output", "weights"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_has_no_channels_is_one_channel(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int | str, ...]],
    output: tuple[str, ...],
    weights: dict[str, Any],
) -> None:
    model = declare(graph(nodes, inputs, {"y": len(output)}, weights), *output)
    at = output.index("N")
    for steps in (1, 5, 16):
        given = {"x": floats(*({"N": 3, "T": steps}.get(extent, extent) for extent in inputs["x"]))}  # type: ignore[arg-type]
        instrumented, pooled = observe(model, given)
        assert_one_channel(instrumented, "y")
        value: NDArray[Any] = np.moveaxis(plain(model, given)["y"], at, 0).reshape(3, 1, -1)
        assert_pools(pooled["y"], value, 1)


def test_rectified_scores_of_several_heads_keep_the_heads() -> None:
    nodes = [node("Transpose", "x", "k", perm=[0, 1, 3, 2]), node("MatMul", "x k", "s"), node("Relu", "s", "y")]
    model = declare(graph(nodes, {"x": ("N", 2, "T", 4)}, {"y": 4}), "N", 2, "T", "T")
    given = {"x": floats(3, 2, 5, 4)}
    instrumented, pooled = observe(model, given)
    (probe,) = [probe for probe in instrumented.probes if probe.name == "y"]
    assert (probe.channels, probe.axis) == (2, 1)
    assert_pools(pooled["y"], plain(model, given)["y"], 1)


def test_a_mask_is_its_share_of_tokens() -> None:
    nodes = [node("Unsqueeze", "mask two", "m"), node("Mul", "x m", "p"), node("Relu", "p", "y")]
    model = graph(nodes, {"x": ("N", "T", 4), "mask": ("N", "T")}, {"y": 3}, {"two": TWO})
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.float32)
    instrumented, pooled = observe(model, {"x": floats(2, 4, 4), "mask": mask})
    assert_one_channel(instrumented, "mask")
    assert pooled["mask"].mean.tolist() == [[0.5], [0.25]]
    assert pooled["mask"].fraction.tolist() == [[0.5], [0.25]]


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("Gemm", "x w", "g"), node("Relu", "g", "y")], {"w": floats(6, 4)}),
        ([node("Sub", "x b", "s"), node("MatMul", "s w", "m"), node("Relu", "m", "y")],
         {"b": floats(6), "w": floats(6, 4)}),
        ([node("Mul", "x b", "s"), node("Relu", "s", "y")], {"b": floats(6)}),
    ],
    ids=["product", "shift and product", "scale"],
)  # fmt: skip
def test_a_name_for_features_is_no_freedom(nodes: list[onnx.NodeProto], weights: dict[str, Any]) -> None:
    model = graph(nodes, {"x": ("N", "features")}, {"y": 2}, weights)
    instrumented, pooled = observe(model, {"x": floats(3, 6)})
    (probe,) = [probe for probe in instrumented.probes if probe.name == "x"]
    assert (probe.channels, probe.axis) == (None, 1)
    assert pooled["x"].mean.shape == (3, 6)


def test_a_picture_of_any_size_keeps_its_colours() -> None:
    """Nothing tells that its channels come last but that height and width change."""
    model = graph([node("Relu", "x", "y")], {"x": ("N", "H", "W", 3)}, {"y": 4})
    instrumented, pooled = observe(model, {"x": floats(2, 5, 6, 3)})
    assert {(probe.channels, probe.axis) for probe in instrumented.probes} == {(3, 3)}
    assert pooled["y"].mean.shape == (2, 3)


def test_in_the_body_of_a_loop_too() -> None:
    then = helper.make_graph(
        [node("Squeeze", "m two", "flat"), node("Relu", "flat", "inner")], "then", [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["N", "T"])],
    )  # fmt: skip
    other = helper.make_graph(
        [node("Squeeze", "m two", "other")], "else", [],
        [helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", "T"])],
    )  # fmt: skip
    nodes = [
        node("MatMul", "x w", "m"),
        helper.make_node("If", ["go"], ["y"], name="y", then_branch=then, else_branch=other),
    ]
    weights = {"w": floats(4, 1), "two": TWO, "go": np.array(True)}
    model = declare(graph(nodes, {"x": ("N", "T", 4)}, {"y": 2}, weights), "N", "T")
    probes = {probe.name: probe for probe in instrument(model, output_types).probes}
    assert probes["y/then_branch/inner"].channels == 1
    for steps in (3, 8):
        _, pooled = observe(model, {"x": floats(2, steps, 4)})
        assert pooled["y/then_branch/inner"].mean.shape == (2, 1)
