"""Model in, model out: adds outputs that summarise every rectifier, graph input and graph output.

`instrument` clones and never changes its argument, names what it adds deterministically and leaves the original
outputs first and untouched, so that a session on the result computes what the served model computes, bit for bit. (On
CPU onnxruntime computes half-precision models in float32 and rounds what is read twice, so there probes add roundings.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, helper

from agent.instrument.axes import Axes
from agent.instrument.batches import batch_symbol, input_axes
from agent.instrument.bodies import Inner, inner_activations, probe_bodies
from agent.instrument.candidates import Candidate, candidates, inputs, outputs, source
from agent.instrument.errors import InstrumentError
from agent.instrument.files import ModelFile, SessionModel, open_model
from agent.instrument.graph import Graph
from agent.instrument.pooled import PooledOutputs
from agent.instrument.pooling import Pooling, PoolSource
from agent.instrument.quantized import KEEP_INT8, stem
from agent.instrument.sizes import Sizes, per_request
from agent.instrument.types import Infer, tensor_types
from agent.wire import NotProbed, Probe

__all__ = [
    "InstrumentError",
    "Instrumented",
    "ModelFile",
    "PooledOutputs",
    "SessionModel",
    "Sizes",
    "instrument",
    "open_model",
    "stem",
]


@dataclass(frozen=True, slots=True)
class _Chosen:
    probe: Probe
    source: PoolSource
    inner: Inner | None
    """Where the probe lies in the body of an If or Loop."""


@dataclass(frozen=True, slots=True)
class Instrumented:
    """An instrumented model and what its added outputs mean."""

    file: ModelFile
    """The model as it was."""
    light: onnx.ModelProto
    """The instrumented model, without the weights that are still in the file."""
    probes: tuple[Probe, ...]
    not_probed: tuple[NotProbed, ...]
    pooled: Mapping[str, PooledOutputs]
    """By probe name."""
    outputs: tuple[str, ...]
    """The original outputs, in order."""
    batch_axes: Mapping[str, int | None]
    """Of each input, the axis along which requests are stacked; None for one that all requests share."""
    sizes: Sizes
    """Of the probed tensors."""
    _inlined: onnx.ModelProto
    _chosen: tuple[_Chosen, ...]

    @property
    def model(self) -> onnx.ModelProto:
        """The instrumented model with all its weights; for models whose weights fit into memory once more."""
        with self.session_model() as made:
            if isinstance(made.source, bytes):
                return onnx.ModelProto.FromString(made.source)
            return onnx.load(made.source)

    @property
    def elements(self) -> Mapping[str, int | None]:
        """By probe name: elements of the probed tensor per request, None where an extent is free."""
        return self.sizes.elements

    @property
    def request_axes(self) -> Mapping[str, int]:
        """By probe name: the axis of the probed tensor's requests; probes whose rows are tokens are not there."""
        layouts = {item.probe.name: item.source.layout for item in self._chosen}
        return {name: layout.requests for name, layout in layouts.items() if not layout.tokens}

    @property
    def weight_bytes(self) -> int:
        """About how much memory one session takes for its weights."""
        return self.file.size

    def session_model(self) -> AbstractContextManager[SessionModel]:
        """What a session is made of; good inside the block."""
        signed = any(item.source.elem_type == TensorProto.INT8 for item in self._chosen if item.source.quantization)
        return self.file.session_model(self.light, {KEEP_INT8: "1"} if signed else {})

    def subset(self, names: Collection[str]) -> Instrumented:
        """The same model with pooling for the named probes only, which keep their names and positions."""
        unknown = set(names) - {probe.name for probe in self.probes}
        if unknown:
            raise ValueError(f"no such probes: {', '.join(sorted(unknown))}")
        kept = tuple(item for item in self._chosen if item.probe.name in names)
        return _assembled(self.file, self._inlined, kept, self)


def instrument(model: onnx.ModelProto | ModelFile, infer: Infer | None = None) -> Instrumented:
    """Adds pooled outputs behind every rectifier, input and output that has requests and channels.

    ``infer`` tells types behind operators of other domains: `agent.replay.output_types`. Raises InstrumentError where
    the model has no rectifier at all that can be probed, or does not pass ONNX shape inference.
    """
    file = model if isinstance(model, ModelFile) else ModelFile(model)
    try:
        proto = file.inlined()
        graph = Graph(proto.graph, tensor_types(proto, infer))
    except Exception as error:  # onnx raises bare RuntimeErrors of several kinds from C++
        raise InstrumentError(f"ONNX shape inference failed: {error}") from error
    try:
        return _instrumented(file, proto, graph, infer)
    except InstrumentError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Nothing checks a served model before onnxruntime does: a node may lack any input or output.
        raise InstrumentError(f"the graph is malformed ({type(error).__name__}: {error})") from error


def _instrumented(file: ModelFile, proto: onnx.ModelProto, graph: Graph, infer: Infer | None) -> Instrumented:
    batch = batch_symbol(graph)
    stacked = input_axes(graph, batch)
    ranked = [axis for name, axis in stacked.items() if graph.types[name].rank > 1 and axis is not None]
    axes = Axes(graph, batch, in_front=not ranked or 0 in ranked)
    chosen, not_probed = _choose(graph, axes, list(inner_activations(graph, axes, proto, infer)))
    if not any(item.probe.kind == "activation" for item in chosen):
        listing = "; ".join(f"{item.name} ({item.op}): {item.reason}" for item in not_probed)
        raise InstrumentError(f"the model has no rectifier that can be probed{': ' + listing if listing else ''}")
    elements = {item.probe.name: _elements(graph, item) for item in chosen}
    dense = {item.probe.name: item.source.dense for item in chosen}
    given = frozenset(item.probe.name for item in chosen if item.probe.kind == "input" and item.source.given)
    sizes = Sizes(elements, dense, given)
    empty = Instrumented(file, proto, (), tuple(not_probed), {}, (), stacked, sizes, proto, chosen)
    return _assembled(file, proto, chosen, empty)


def _choose(graph: Graph, axes: Axes, inner: list[Inner]) -> tuple[tuple[_Chosen, ...], list[NotProbed]]:
    found, not_probed = candidates(graph)
    order = {name: place for place, node in enumerate(graph.nodes) for name in node.output}
    ranked: list[tuple[Candidate, PoolSource | str, Inner | None]] = [
        (candidate, source(candidate, graph, axes), None) for candidate in found
    ] + [(item.candidate, item.source, item) for item in inner]
    ranked.sort(key=lambda item: order[item[0].tensor if item[2] is None else item[2].place.owner])
    ends = [(candidate, source(candidate, graph, axes), None) for candidate in inputs(graph)]
    rest = [(candidate, source(candidate, graph, axes), None) for candidate in outputs(graph, found)]
    chosen: list[_Chosen] = []
    taken: set[str] = set()
    for candidate, how, place in [*ends, *ranked, *rest]:
        if isinstance(how, str):
            not_probed.append(NotProbed(candidate.name, candidate.op, how))
            continue
        name = _unique(candidate, taken)
        known = graph.types.get(candidate.tensor)
        if place is not None:
            channels = place.channels
        elif how.layout.whole:
            channels = 1
        else:
            channels = how.blocked or (None if known is None else known.extent(how.layout.channels))
        probe = Probe(
            name=name,
            op=candidate.op,
            tensor=candidate.tensor,
            channels=channels,
            axis=how.layout.channels,
            kind=candidate.kind,
            position=len(chosen),
            exact_zero=candidate.exact_zero,
        )
        chosen.append(_Chosen(probe, how, place))
    return tuple(chosen), not_probed


def _unique(candidate: Candidate, taken: set[str]) -> str:
    """The candidate's name; its kind or a number is added where the model uses the name twice."""
    tries = [candidate.name, f"{candidate.name}:{candidate.kind}"]
    tries += [f"{candidate.name}:{number}" for number in range(2, len(taken) + 3)]
    name = next(name for name in tries if name not in taken)
    taken.add(name)
    return name


def _elements(graph: Graph, item: _Chosen) -> int | None:
    """Elements of a probed tensor per request; None where that is not known before the first."""
    known = graph.types.get(item.probe.tensor)
    if item.inner is not None or item.source.layout.tokens or known is None:
        return None
    return per_request(known, item.source.layout.requests)


def _assembled(
    file: ModelFile, proto: onnx.ModelProto, chosen: tuple[_Chosen, ...], base: Instrumented
) -> Instrumented:
    batched = (name for name, axis in base.batch_axes.items() if axis == 0)
    pooling = Pooling(_opset(proto), requests_from=next(batched, None))
    pooled: dict[str, PooledOutputs] = {}
    made: dict[PoolSource, PooledOutputs] = {}
    bodies: dict[str, list[tuple[str, Inner]]] = {}
    for item in chosen:
        if item.probe.kind == "input" and item.source.given:
            pooled[item.probe.name] = PooledOutputs(item.probe.tensor, item.probe.tensor, None)
        elif item.inner is None:
            # A tensor may be an input or an activation and an output as well.
            if item.source not in made:
                made[item.source] = pooling.add(item.source)
            pooled[item.probe.name] = made[item.source]
        else:
            bodies.setdefault(item.inner.place.owner, []).append((item.probe.name, item.inner))
    clone = onnx.ModelProto()
    clone.CopyFrom(proto)
    carried: list[str] = []
    for node in clone.graph.node:
        if node.output and node.output[0] in bodies:
            changed, of_bodies, added = probe_bodies(node, bodies[node.output[0]], _opset(proto))
            node.CopyFrom(changed)
            pooled |= of_bodies
            carried += added
    _add(clone.graph, pooling, carried)
    probes = tuple(item.probe for item in chosen)
    return replace(
        base,
        light=clone,
        probes=probes,
        pooled={probe.name: pooled[probe.name] for probe in probes},
        outputs=tuple(value.name for value in proto.graph.output),
        _chosen=chosen,
    )


def _add(graph: onnx.GraphProto, pooling: Pooling, carried: list[str]) -> None:
    taken = {name for node in graph.node for name in (*node.input, *node.output)} - set(carried)
    clash = taken.intersection(name for node in pooling.nodes for name in node.output)
    if clash:
        raise InstrumentError(f"the model has tensors of reserved names already: {', '.join(sorted(clash))}")
    graph.node.extend(pooling.nodes)
    graph.initializer.extend(pooling.initializers)
    present = {value.name for value in graph.output}
    for name in dict.fromkeys([*pooling.outputs, *carried]):
        if name not in present:
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _opset(model: onnx.ModelProto) -> int:
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)
