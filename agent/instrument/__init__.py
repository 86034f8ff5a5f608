"""Model in, model out: adds outputs that summarise every rectifier, graph input and graph output.

`instrument` clones and never changes its argument, names what it adds deterministically and leaves the original
outputs first and untouched, so that a session on the result computes what the served model computes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from agent.instrument.graph import Graph, TensorType, subgraph_nodes
from agent.instrument.pooling import Pooling
from agent.instrument.rectifiers import exact_zero, reason_not_probed
from agent.pooled import PooledOutputs
from agent.wire import NotProbed, Probe, ProbeKind

__all__ = ["InstrumentError", "Instrumented", "PooledOutputs", "SessionModel", "instrument", "load"]

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_PIXELS = frozenset({TensorProto.UINT8, TensorProto.INT8})


class InstrumentError(ValueError):
    """A file or model that cannot be observed, and why."""


@dataclass(frozen=True, slots=True)
class SessionModel:
    """What a session is made of: the bytes or the path of a model, and session options that belong to it."""

    source: bytes | str
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instrumented:
    """An instrumented model and what its added outputs mean."""

    model: onnx.ModelProto
    probes: tuple[Probe, ...]
    not_probed: tuple[NotProbed, ...]
    pooled: dict[str, PooledOutputs]
    """By probe name."""
    outputs: tuple[str, ...]
    """The original outputs, in order."""
    batch_axes: Mapping[str, int | None]
    """Of each input, the axis along which requests are stacked; None for one that all requests share."""
    elements: Mapping[str, int | None]
    """By probe name: elements of the probed tensor per request, None where an extent is free."""

    @property
    def weight_bytes(self) -> int:
        """About how much memory one session takes for its weights."""
        return self.model.ByteSize()

    @contextmanager
    def session_model(self) -> Iterator[SessionModel]:
        """What a session is made of; good inside the block."""
        yield SessionModel(self.model.SerializeToString())

    def subset(self, names: Collection[str]) -> Instrumented:
        """The same model with pooling for the named probes only, which keep their names and positions."""
        unknown = set(names) - {probe.name for probe in self.probes}
        if unknown:
            raise ValueError(f"no such probes: {', '.join(sorted(unknown))}")
        pooled = {name: outputs for name, outputs in self.pooled.items() if name in names}
        kept = tuple(probe for probe in self.probes if probe.name in names)
        model = _without_pooling(self.model, {name for one in pooled.values() for name in one.names}, self.outputs)
        return replace(self, model=model, probes=kept, pooled=pooled)


def load(path: Path) -> onnx.ModelProto:
    """Reads a model with its external data; raises InstrumentError where the file is missing or no ONNX model."""
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise InstrumentError(f"{error.filename or path}: no such file") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        raise InstrumentError(f"{path}: not an ONNX model ({str(error) or type(error).__name__})") from error
    if not model.graph.node:
        raise InstrumentError(f"{path}: not an ONNX model (it has no graph)")
    return model


def instrument(model: onnx.ModelProto) -> Instrumented:
    """Adds pooled outputs behind every rectifier, input and output that has requests first and a channel axis.

    Raises InstrumentError where the model has no rectifier at all, or does not pass ONNX shape inference.
    """
    try:
        graph = Graph(model)
    except Exception as error:  # onnx raises bare RuntimeErrors of several kinds from C++
        raise InstrumentError(f"ONNX shape inference failed: {error}") from error
    pooling = Pooling(_opset(model))
    probes: list[Probe] = []
    not_probed = list(_activations_left_out(graph))
    pooled: dict[str, PooledOutputs] = {}
    for candidate in _candidates(graph):
        known = graph.types.get(candidate.tensor)
        axis = graph.channel_axis(candidate.tensor)
        reason = _obstacle(candidate, known, axis)
        if reason is not None or known is None or axis is None:
            not_probed.append(NotProbed(candidate.name, candidate.op, reason or "its shape is unknown"))
            continue
        name = candidate.name if candidate.name not in pooled else f"{candidate.name}:{candidate.kind}"
        pooled[name] = pooling.add(candidate.tensor, known.elem_type, known.rank, axis)
        probes.append(
            Probe(
                name=name,
                op=candidate.op,
                tensor=candidate.tensor,
                channels=known.shape[axis],
                axis=axis,
                kind=candidate.kind,
                position=len(probes),
                exact_zero=candidate.exact_zero,
            )
        )
    if not any(probe.kind == "activation" for probe in probes):
        listing = "; ".join(f"{item.name} ({item.op}): {item.reason}" for item in not_probed)
        raise InstrumentError(f"the model has no rectifier that can be probed{': ' + listing if listing else ''}")
    outputs = tuple(value.name for value in model.graph.output)
    return Instrumented(
        _rewrite(model, pooling),
        tuple(probes),
        tuple(not_probed),
        pooled,
        outputs,
        {value.name: 0 for value in graph.inputs},
        {probe.name: _elements(graph.types[probe.tensor]) for probe in probes},
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    op: str
    tensor: str
    kind: ProbeKind
    exact_zero: bool


def _candidates(graph: Graph) -> Iterator[_Candidate]:
    """Inputs, rectifiers and outputs in graph order."""
    for value in graph.inputs:
        yield _Candidate(value.name, "Input", value.name, "input", False)
    rectified = set()
    for node in graph.nodes:
        zero = exact_zero(node, graph)
        if zero is not None:
            rectified.add(node.output[0])
            yield _Candidate(node.name or node.output[0], node.op_type, node.output[0], "activation", zero)
    for value in graph.outputs:
        if value.name not in rectified:
            yield _Candidate(value.name, "Output", value.name, "output", False)


def _activations_left_out(graph: Graph) -> Iterator[NotProbed]:
    for node in graph.nodes:
        reason = reason_not_probed(node, graph) if exact_zero(node, graph) is None else None
        if reason is not None:
            yield NotProbed(node.name or node.output[0], node.op_type, reason)
        for inner in subgraph_nodes(node):
            if exact_zero(inner, graph) is not None:
                reason = f"inside the body of {node.op_type} {node.name or node.output[0]}"
                yield NotProbed(inner.name or inner.output[0], inner.op_type, reason)


def _obstacle(candidate: _Candidate, known: TensorType | None, axis: int | None) -> str | None:
    if known is None:
        return "its shape is unknown to ONNX shape inference"
    kind = TensorProto.DataType.Name(known.elem_type)
    if known.elem_type not in _FLOATS and not (known.elem_type in _PIXELS and known.rank >= 3):
        return f"its values are {kind}, whose mean says nothing"
    if known.rank < 2:
        return f"its rank is {known.rank}: it has no channel axis beside the requests"
    if axis == 0:
        return "its channels lie along the first axis, where requests are expected"
    return None


def _elements(known: TensorType) -> int | None:
    extents = [extent for extent in known.shape[1:] if extent is not None]
    return prod(extents) if len(extents) == known.rank - 1 else None


def _without_pooling(model: onnx.ModelProto, fetched: set[str], outputs: Collection[str]) -> onnx.ModelProto:
    """The model without the added nodes that ``fetched`` does not need."""
    needed, kept = set(fetched), []
    for node in reversed(model.graph.node):
        if not node.name.startswith("reluscope:") or needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    del clone.graph.node[:]
    clone.graph.node.extend(reversed(kept))
    for index in reversed(range(len(model.graph.output))):
        if model.graph.output[index].name not in fetched | set(outputs):
            del clone.graph.output[index]
    return clone


def _opset(model: onnx.ModelProto) -> int:
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)


def _rewrite(model: onnx.ModelProto, pooling: Pooling) -> onnx.ModelProto:
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    graph = clone.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    clash = taken.intersection(name for node in pooling.nodes for name in node.output)
    if clash:
        raise InstrumentError(f"the model has tensors of reserved names already: {', '.join(sorted(clash))}")
    graph.node.extend(pooling.nodes)
    graph.initializer.extend(pooling.initializers)
    present = {value.name for value in graph.output}
    for name in dict.fromkeys(pooling.outputs):
        if name not in present:
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return clone
