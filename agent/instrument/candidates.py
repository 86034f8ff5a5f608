"""What of a graph is observed: inputs, activations and outputs, each with how it is pooled, or why it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from agent.instrument.axes import Axes
from agent.instrument.graph import Graph, attribute
from agent.instrument.pooling import BLOCKED, PoolSource
from agent.instrument.quantized import Quantization, quantization, quantized_activations
from agent.instrument.rectifiers import activations, left_out
from agent.instrument.types import FLOATS, TensorType
from agent.wire import NotProbed, ProbeKind

_PIXELS = frozenset({TensorProto.UINT8, TensorProto.INT8})
_ELEMENTWISE = frozenset({"Add", "Sum", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Clip"})
_MAX_STEPS = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that would be worth observing."""

    name: str
    op: str
    tensor: str
    kind: ProbeKind
    exact_zero: bool
    quantization: Quantization | None = None


def candidates(graph: Graph) -> tuple[list[Candidate], list[NotProbed]]:
    """Activations in graph order, and activations that are left out with the reason."""
    found = activations(graph)
    rectified = {item.tensor for item in found}
    order = {name: place for place, node in enumerate(graph.nodes) for name in node.output}
    chosen = [_quantized_later(Candidate(a.name, a.op, a.tensor, "activation", a.exact_zero), graph) for a in found]
    chosen += [
        Candidate(q.name, q.op, q.tensor, "activation", q.exact_zero, q.quantization)
        for q in quantized_activations(graph, rectified)
    ]
    chosen.sort(key=lambda item: order[item.tensor])
    others = [NotProbed(producer_name(node), node.op_type, reason) for node, reason in left_out(graph, found)]
    return chosen, others


def inputs(graph: Graph) -> Iterator[Candidate]:
    """The graph's inputs."""
    for value in graph.inputs:
        yield Candidate(value.name, "Input", value.name, "input", False)


def outputs(graph: Graph, chosen: list[Candidate]) -> Iterator[Candidate]:
    """The graph's outputs, but for those that are observed as activations already."""
    known = {item.tensor for item in chosen}
    for value in graph.outputs:
        if value.name not in known:
            yield Candidate(value.name, "Output", value.name, "output", False)


def source(candidate: Candidate, graph: Graph, axes: Axes) -> PoolSource | str:
    """How a candidate is pooled, or why it cannot be."""
    known = graph.types.get(candidate.tensor)
    if known is None:
        return _unusual_type(candidate.tensor, graph) or "its shape is unknown to shape inference"
    obstacle = _obstacle(candidate, known)
    if obstacle is not None:
        return obstacle
    layout = axes.layout(candidate.tensor)
    if layout is None:
        return "it cannot be told along which axis its requests lie"
    blocked = _blocked_channels(candidate.tensor, known, graph)
    steps = known.extent(1) if known.rank == 3 and (layout.requests, layout.channels) == (0, 2) else None
    return PoolSource(candidate.tensor, known.elem_type, known.rank, layout, candidate.quantization, steps, blocked)


def _obstacle(candidate: Candidate, known: TensorType) -> str | None:
    kind = TensorProto.DataType.Name(known.elem_type)
    if (
        candidate.quantization is None
        and known.elem_type not in FLOATS
        and not (known.elem_type in _PIXELS and known.rank >= 3)
    ):
        return f"its values are {kind}, whose mean says nothing"
    if known.rank < 2:
        return f"its rank is {known.rank}: it has no channel axis beside the requests"
    return None


def _unusual_type(tensor: str, graph: Graph) -> str | None:
    for value in [*graph.inputs, *graph.outputs]:
        kind = value.type.WhichOneof("value")
        if value.name == tensor and kind not in (None, "tensor_type"):
            return f"its type is {kind.removesuffix('_type').replace('_', ' ')}, not a dense tensor"
    return None


def _quantized_later(candidate: Candidate, graph: Graph) -> Candidate:
    """Where only a QuantizeLinear reads an activation, what that makes of it is observed.

    A further reader would keep onnxruntime from computing the layer in integers, as the served model does.
    """
    reader = graph.only_consumer(candidate.tensor)
    if reader is None or reader.op_type != "QuantizeLinear" or candidate.tensor in {v.name for v in graph.outputs}:
        return candidate
    how = quantization(reader, graph)
    if how is None:
        return candidate
    return Candidate(
        candidate.name, candidate.op, reader.output[0], candidate.kind, candidate.exact_zero, quantization=how
    )


def _blocked_channels(tensor: str, known: TensorType, graph: Graph) -> int | None:
    """The channels of a tensor in onnxruntime's blocked layout; None where its layout is the plain one.

    The blocks' padding is told by the ReorderOutput that ends the layout, where one follows.
    """
    if not _is_blocked(tensor, graph, _MAX_STEPS):
        return None
    return _reordered_channels(tensor, graph, _MAX_STEPS) or known.extent(1)


def _is_blocked(tensor: str, graph: Graph, steps: int) -> bool:
    node = graph.producer(tensor)
    if node is None or steps == 0:
        return False
    if node.domain == BLOCKED:
        return node.op_type != "ReorderOutput"
    return node.op_type in _ELEMENTWISE and any(_is_blocked(name, graph, steps - 1) for name in node.input)


def _reordered_channels(tensor: str, graph: Graph, steps: int) -> int | None:
    if steps == 0:
        return None
    for node in graph.consumers(tensor):
        if node.op_type == "ReorderOutput":
            return int(attribute(node, "channels"))
        if node.op_type in _ELEMENTWISE or (node.domain == BLOCKED and node.op_type.endswith("Pool")):
            found = _reordered_channels(node.output[0], graph, steps - 1)
            if found is not None:
                return found
    return None


def producer_name(node: onnx.NodeProto) -> str:
    """A node's name, or that of its first output."""
    return node.name or (node.output[0] if node.output else node.op_type)
