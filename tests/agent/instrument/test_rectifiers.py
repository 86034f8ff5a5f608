"""Every rectifier is found under its name, whichever way it is written, and pooled as numpy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.instrument import instrument
from tests.agent.instrument.checks import assert_pools, floats, graph, node, observe, plain

ZERO = {"zero": np.zeros((), np.float32)}


def scalar(**values: float) -> dict[str, np.ndarray]:
    return {name: np.array(value, np.float32) for name, value in values.items()}


SINGLE: list[tuple[str, dict[str, Any], dict[str, np.ndarray], int, bool]] = [
    # operator, attributes, further inputs, opset, can be exactly zero
    ("Relu", {}, {}, 17, True),
    ("LeakyRelu", {"alpha": 0.1}, {}, 17, False),
    ("PRelu", {}, {"slope": np.full((3, 1, 1), 0.2, np.float32)}, 17, False),
    ("ThresholdedRelu", {"alpha": 0.5}, {}, 17, True),
    ("Clip", {"min": 0.0, "max": 6.0}, {}, 7, True),
    ("Clip", {}, scalar(low=0, high=6), 17, True),
    ("Max", {}, ZERO, 17, True),
    ("Max", {}, {"zeros": np.zeros((1, 3, 1, 1), np.float32)}, 8, True),
    ("Elu", {}, {}, 17, False),
    ("Selu", {}, {}, 17, False),
    ("Celu", {}, {}, 17, False),
    ("HardSwish", {}, {}, 17, True),
    ("Gelu", {}, {}, 20, False),
    ("Gelu", {"approximate": "tanh"}, {}, 20, False),
    ("Swish", {}, {}, 24, False),
]


@pytest.mark.parametrize(("op", "attributes", "more", "opset", "exact_zero"), SINGLE)
def test_single_operator(
    op: str, attributes: dict[str, Any], more: dict[str, np.ndarray], opset: int, exact_zero: bool
) -> None:
    model = graph([node(op, " ".join(["x", *more]), "y", **attributes)], {"x": ("N", 3, 5, 4)}, {"y": 4}, more, opset)
    inputs = {"x": 4 * floats(2, 3, 5, 4)}
    instrumented, pooled = observe(model, inputs)
    probe = instrumented.probes[1]
    assert (probe.name, probe.op, probe.exact_zero, probe.channels) == ("y", op, exact_zero, 3)
    assert_pools(pooled["y"], plain(model, inputs)["y"], 1)


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_every_opset(opset: int) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "relu"),
        node("Transpose", "relu", "t", perm=[0, 2, 3, 1]),
        node("LeakyRelu", "t", "leaky"),
    ]
    model = graph(nodes, {"x": ("N", 3, 6, 6)}, {"leaky": 4}, {"w": floats(4, 3, 3, 3)}, opset)
    inputs = {"x": floats(2, 3, 6, 6)}
    instrumented, pooled = observe(model, inputs)
    assert [(probe.name, probe.axis) for probe in instrumented.probes] == [("x", 1), ("relu", 1), ("leaky", 3)]
    tensors = plain(model, inputs, ["relu", "leaky"])
    assert_pools(pooled["relu"], tensors["relu"], 1)
    assert_pools(pooled["leaky"], tensors["leaky"], 3)


SPELLED_OUT: list[tuple[str, list[onnx.NodeProto], dict[str, np.ndarray], str]] = [
    ("Silu", [node("Sigmoid", "x", "s"), node("Mul", "x s", "y")], {}, ""),
    ("Silu", [node("Sigmoid", "x", "s"), node("Mul", "s x", "y")], {}, ""),
    ("Where", [node("Greater", "x zero", "p"), node("Where", "p x zero", "y")], scalar(zero=0), ""),
    ("Max", [node("Max", "x zero low", "y")], scalar(zero=0, low=-1), ""),
    (
        "QuickGelu",
        [node("Mul", "x a", "ax"), node("Sigmoid", "ax", "s"), node("Mul", "x s", "y")],
        scalar(a=1.702),
        "",
    ),
    ("HardSwish", [node("HardSigmoid", "x", "s", alpha=1 / 6), node("Mul", "x s", "y")], {}, ""),
    (
        "HardSwish",
        [
            node("Add", "x three", "a"),
            node("Clip", "a zero six", "c"),
            node("Div", "c six", "d"),
            node("Mul", "x d", "y"),
        ],
        scalar(three=3, zero=0, six=6),
        "",
    ),
    (
        "HardSwish",
        [
            node("Add", "x three", "a"),
            node("Clip", "a zero six", "c"),
            node("Mul", "x c", "m"),
            node("Div", "m six", "y"),
        ],
        scalar(three=3, zero=0, six=6),
        "m",
    ),
    (
        "Gelu",
        [
            node("Div", "x root", "d"),
            node("Erf", "d", "e"),
            node("Add", "e one", "a"),
            node("Mul", "x a", "m"),
            node("Mul", "m half", "y"),
        ],
        scalar(root=2**0.5, one=1, half=0.5),
        "",
    ),
    (
        "Gelu",
        [
            node("Div", "x root", "d"),
            node("Erf", "d", "e"),
            node("Add", "e one", "a"),
            node("Mul", "x half", "h"),
            node("Mul", "h a", "y"),
        ],
        scalar(root=2**0.5, one=1, half=0.5),
        "",
    ),
    (
        "Gelu",
        [
            node("Mul", "x x", "x2"),
            node("Mul", "x2 x", "x3"),
            node("Mul", "x3 k", "kx3"),
            node("Add", "x kx3", "sum"),
            node("Mul", "sum root", "z"),
            node("Tanh", "z", "t"),
            node("Add", "t one", "a"),
            node("Mul", "a half", "g"),
            node("Mul", "x g", "y"),
        ],
        scalar(k=0.044715, root=(2 / np.pi) ** 0.5, one=1, half=0.5),
        "",
    ),
]


@pytest.mark.parametrize(("op", "nodes", "weights", "tensor"), SPELLED_OUT)
def test_spelled_out(op: str, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], tensor: str) -> None:
    tensor = tensor or "y"
    model = graph(nodes, {"x": ("N", 3, 5, 4)}, {"y": 4}, weights)
    inputs = {"x": 3 * floats(2, 3, 5, 4)}
    instrumented, pooled = observe(model, inputs)
    activations = [(probe.name, probe.op) for probe in instrumented.probes if probe.kind == "activation"]
    assert activations == [(tensor, op)], "the parts of an activation are not probed beside it"
    assert instrumented.not_probed == ()
    assert_pools(pooled[tensor], plain(model, inputs, [tensor])[tensor], 1)


@pytest.mark.parametrize(
    ("op", "attributes", "exact_zero"),
    [
        ("Relu", {}, True),
        ("LeakyRelu", {"activation_params": [0.1]}, False),
        ("Clip", {"activation_params": [0.0, 6.0]}, True),
    ],
)
def test_fused_convolution(op: str, attributes: dict[str, Any], exact_zero: bool) -> None:
    nodes = [
        node("FusedConv", "x w", "y", domain="com.microsoft", activation=op, **attributes),
        node("Relu", "y", "z"),  # behind an operator whose types ONNX does not know
    ]
    weights = {"w": floats(4, 3, 3, 3)}
    model = graph(nodes, {"x": ("N", 3, 6, 6)}, {"z": 4}, weights, domains=["com.microsoft"])
    inputs = {"x": floats(2, 3, 6, 6)}
    instrumented, pooled = observe(model, inputs)
    probe = instrumented.probes[1]
    assert (probe.name, probe.op, probe.exact_zero) == ("y", f"FusedConv+{op}", exact_zero)
    assert_pools(pooled["y"], plain(model, inputs, ["y"])["y"], 1)


def test_fused_gemm_and_other_fused_activations() -> None:
    nodes = [
        node("FusedGemm", "x w", "y", domain="com.microsoft", activation="Relu"),
        node("FusedGemm", "y v", "z", domain="com.microsoft", activation="Sigmoid"),
    ]
    weights = {"w": floats(4, 5), "v": floats(5, 2)}
    model = graph(nodes, {"x": ("N", 4)}, {"z": 2}, weights, domains=["com.microsoft"])
    inputs = {"x": floats(3, 4)}
    instrumented, pooled = observe(model, inputs)
    assert_pools(pooled["y"], plain(model, inputs, ["y"])["y"], 1)
    assert [(item.name, item.reason) for item in instrumented.not_probed] == [
        ("z", "its fused activation Sigmoid is not a rectifier")
    ]


def test_a_recurrent_layer_of_relus_is_probed_and_another_named() -> None:
    def layer(name: str, activation: str) -> onnx.NodeProto:
        return helper.make_node("RNN", ["x", "w", "r"], [name], name=name, hidden_size=4, activations=[activation])

    weights = {"w": floats(1, 4, 3), "r": 0.1 * floats(1, 4, 4)}
    nodes = [layer("relus", "Relu"), layer("tanhs", "Tanh"), node("Add", "relus tanhs", "y")]
    model = graph(nodes, {"x": ("T", "N", 3)}, {"y": 4}, weights)
    inputs = {"x": floats(6, 2, 3)}
    instrumented, pooled = observe(model, inputs)
    assert instrumented.batch_axes == {"x": 1}
    assert_pools(pooled["relus"], plain(model, inputs, ["relus"])["relus"], channels=3, requests=2)
    assert [item.reason for item in instrumented.not_probed] == ["its activations (Tanh) are not all Relu"]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_precisions_are_pooled_in_float(kind: int) -> None:
    nodes = [node("Cast", "x", "c", to=kind), node("Relu", "c", "r"), node("Cast", "r", "y", to=TensorProto.FLOAT)]
    model = graph(nodes, {"x": ("N", 3, 5, 4)}, {"y": 4})
    inputs = {"x": floats(2, 3, 5, 4)}
    _, pooled = observe(model, inputs)
    assert_pools(pooled["r"], plain(model, inputs, ["r"])["r"], 1, rtol=1e-3)


def test_bfloat16_is_pooled_in_float() -> None:
    """onnxruntime has no bfloat16 arithmetic on CPU, so the model can be instrumented here but not run."""
    nodes = [
        node("Cast", "x", "c", to=TensorProto.BFLOAT16),
        node("Max", "c zero", "r"),
        node("Cast", "r", "y", to=TensorProto.FLOAT),
    ]
    model = graph(nodes, {"x": ("N", 3, 5, 4)}, {"y": 4})
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.BFLOAT16, [], [0.0]))
    instrumented = instrument(model)
    assert [probe.name for probe in instrumented.probes] == ["x", "r", "y"]
    readers = [item.op_type for item in instrumented.model.graph.node if "r" in item.input]
    assert readers == ["Cast", "Cast"], "the served model's own, and the one that pooling reads"


def test_what_is_no_rectifier_is_named_with_its_reason() -> None:
    nodes = [
        node("Relu", "x", "r"),
        node("Clip", "r low high", "clip"),
        node("Tanh", "clip", "tanh"),
        node("Max", "tanh x", "y"),
    ]
    model = graph(nodes, {"x": ("N", 4)}, {"y": 2}, scalar(low=-1, high=1))
    assert {item.name: item.reason for item in instrument(model).not_probed} == {
        "clip": "Clip whose lower bound is not the constant 0 is not a rectifier",
        "tanh": "Tanh is not a rectifier",
    }
