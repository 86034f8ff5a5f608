"""Which nodes are activations to probe, and whether they can be exactly zero.

Single operators, activations fused into contrib operators, and those that exporters spell out: Max(x, 0),
x * sigmoid(x), x * clip(x + 3, 0, 6) / 6 and both forms of Gelu.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from agent.instrument.graph import Graph, attribute, text_attribute

_EXACT_ZERO = frozenset({"Relu", "ThresholdedRelu", "HardSwish"})
_NEVER_QUITE_ZERO = frozenset(
    {"LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Swish", "Silu"}
)
_NO_RECTIFIERS = frozenset(
    {"Sigmoid", "Tanh", "Softplus", "Softsign", "Mish", "HardSigmoid", "Shrink", "Softmax", "LogSoftmax", "Hardmax"}
)
_GATES = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Erf"})
"""Operators that are part of an activation spelled out, and then not worth a line of their own."""


@dataclass(frozen=True, slots=True)
class Activation:
    """A node whose output is an activation."""

    node: onnx.NodeProto
    op: str
    """The operator in ONNX's words; with the fused activation, as in "FusedConv+Relu"."""
    exact_zero: bool
    parts: tuple[str, ...] = ()
    """Outputs of the nodes that compute it, where it is spelled out."""

    @property
    def tensor(self) -> str:
        return str(self.node.output[0])

    @property
    def name(self) -> str:
        return self.node.name or self.tensor


def activations(graph: Graph) -> list[Activation]:
    """All activations of a graph, in graph order; the parts of one spelled out are not listed themselves."""
    found = [item for node in graph.nodes if (item := _activation(node, graph)) is not None]
    parts = {name for item in found for name in item.parts}
    return [item for item in found if item.tensor not in parts]


def left_out(graph: Graph, found: list[Activation]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Activations that are no rectifiers, and why each is not probed."""
    known = {item.tensor for item in found} | {name for item in found for name in item.parts}
    for node in graph.nodes:
        if node.output and node.output[0] in known:
            continue
        fused = text_attribute(node, "activation")
        if node.op_type in _NO_RECTIFIERS:
            yield node, f"{node.op_type} is not a rectifier"
        elif node.op_type == "Clip":
            yield node, "Clip whose lower bound is not the constant 0 is not a rectifier"
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            yield node, f"its activations ({_recurrent(node)}) are not all Relu"
        elif fused:
            yield node, f"its fused activation {fused} is not a rectifier"


def _activation(node: onnx.NodeProto, graph: Graph) -> Activation | None:
    if not node.output or not node.output[0]:
        return None
    if node.op_type in _EXACT_ZERO:
        return Activation(node, node.op_type, True)
    if node.op_type in _NEVER_QUITE_ZERO:
        return Activation(node, node.op_type, False)
    if node.op_type == "Clip" and _lower_bound(node, graph) == 0:
        return Activation(node, "Clip", True)
    if node.op_type == "Max" and len(node.input) > 1 and any(graph.is_constant(name, 0) for name in node.input):
        return Activation(node, "Max", True)
    if node.op_type == "Where" and _is_rectifying(node, graph):
        return Activation(node, "Where", True, (node.input[0],))
    if node.op_type == "RNN" and set(_recurrent(node).split(", ")) == {"Relu"}:
        return Activation(node, "RNN+Relu", True)
    return _fused(node) or _spelled_out(node, graph)


def _is_rectifying(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether it is Where(x > 0, x, 0)."""
    condition, value, otherwise = node.input
    maker = graph.producer(condition)
    return (
        maker is not None
        and maker.op_type in ("Greater", "GreaterOrEqual")
        and maker.input[0] == value
        and graph.is_constant(maker.input[1], 0)
        and graph.is_constant(otherwise, 0)
    )


def _lower_bound(node: onnx.NodeProto, graph: Graph) -> float | None:
    lower = attribute(node, "min")
    if lower is None and len(node.input) > 1 and node.input[1]:
        return graph.constant(node.input[1])
    return None if lower is None else float(lower)


def _recurrent(node: onnx.NodeProto) -> str:
    given = attribute(node, "activations") or ([b"Tanh"] if node.op_type == "RNN" else [b"Sigmoid", b"Tanh"])
    return ", ".join(item.decode() for item in given)


def _fused(node: onnx.NodeProto) -> Activation | None:
    """FusedConv, FusedGemm, NhwcFusedConv and the blocked Conv of onnxruntime carry their activation by name."""
    fused = text_attribute(node, "activation")
    name = f"{node.op_type}+{fused}"
    lowest = next(iter(attribute(node, "activation_params") or [None]))
    if fused in _EXACT_ZERO or (fused == "Clip" and lowest == 0):
        return Activation(node, name, True)
    return Activation(node, name, False) if fused in _NEVER_QUITE_ZERO else None


def _spelled_out(node: onnx.NodeProto, graph: Graph) -> Activation | None:
    """An activation computed by several nodes, recognised by the product it ends in."""
    if node.op_type != "Mul" or len(node.input) != 2:
        return None
    for value, gate in (node.input, reversed(node.input)):
        found = _gated(node, value, gate, graph) or _gelu(node, value, gate, graph)
        if found is not None:
            return found
    return None


def _gated(node: onnx.NodeProto, value: str, gate: str, graph: Graph) -> Activation | None:
    """Silu, QuickGelu and HardSwish: x times a function of x."""
    maker = graph.producer(gate)
    if maker is None or not maker.input:
        return None
    source = maker.input[0]
    if maker.op_type == "Sigmoid":
        if source == value:
            return Activation(node, "Silu", False, (gate,))
        scaled = graph.producer(source)
        if scaled is not None and scaled.op_type == "Mul" and value in scaled.input and _constant(scaled, graph):
            return Activation(node, "QuickGelu", False, (gate, source))
    if maker.op_type == "HardSigmoid" and source == value:
        return Activation(node, "HardSwish", True, (gate,))
    parts = [gate]
    if maker.op_type in ("Div", "Mul") and _constant(maker, graph):  # clip(x + 3, 0, 6) / 6
        gate, maker = source, graph.producer(source)
        parts.append(gate)
    if maker is None or maker.op_type != "Clip" or _lower_bound(maker, graph) != 0:
        return None
    shifted = graph.producer(maker.input[0])
    if shifted is None or shifted.op_type != "Add" or value not in shifted.input:
        return None
    if not any(graph.is_constant(name, 3) for name in shifted.input):
        return None
    return Activation(node, "HardSwish", True, (*parts, maker.input[0]))


def _gelu(node: onnx.NodeProto, value: str, gate: str, graph: Graph) -> Activation | None:
    """x * (1 + erf(x / sqrt 2)) and x * (1 + tanh(...)), the half before, between or after."""
    parts = [gate]
    x, halved = _without_half(value, graph)
    if halved:
        parts.append(value)
    inner, gate_halved = _without_half(gate, graph)
    if gate_halved:
        parts.append(inner)
    total = graph.producer(inner)
    if total is None or total.op_type != "Add" or not any(graph.is_constant(name, 1) for name in total.input):
        return None
    curve = next((maker for name in total.input if (maker := graph.producer(name)) is not None), None)
    if curve is None or curve.op_type not in ("Erf", "Tanh") or not _depends(curve.input[0], x, graph):
        return None
    parts.append(curve.output[0])
    if halved or gate_halved:
        return Activation(node, "Gelu", False, tuple(parts))
    after = graph.only_consumer(node.output[0])
    if after is not None and after.op_type == "Mul" and any(graph.is_constant(name, 0.5) for name in after.input):
        return Activation(after, "Gelu", False, (*parts, node.output[0]))
    return None


def _without_half(tensor: str, graph: Graph) -> tuple[str, bool]:
    node = graph.producer(tensor)
    if node is not None and len(node.input) == 2:
        for value, factor in (node.input, reversed(node.input)):
            if (node.op_type == "Mul" and graph.is_constant(factor, 0.5)) or (
                node.op_type == "Div" and factor == node.input[1] and graph.is_constant(factor, 2)
            ):
                return value, True
    return tensor, False


def _depends(tensor: str, source: str, graph: Graph, steps: int = 12) -> bool:
    """Whether a tensor is computed from ``source`` by a short chain of arithmetic."""
    if tensor == source:
        return True
    node = graph.producer(tensor)
    if node is None or steps == 0 or node.op_type not in ("Mul", "Div", "Add", "Pow", "Cast"):
        return False
    return any(_depends(name, source, graph, steps - 1) for name in node.input)


def _constant(node: onnx.NodeProto, graph: Graph) -> bool:
    return any(graph.constant(name) is not None for name in node.input)
