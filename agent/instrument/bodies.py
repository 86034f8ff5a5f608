"""Probes inside the bodies of If and Loop: pooled where they are computed, and carried out as further outputs.

    Before                          After
    If --> y                        If --> y, mean, maximum, fraction     the taken branch's; (0, C) where it was not
    Loop --> z                      Loop --> z, mean, maximum, fraction   (iterations, N, C)

Both branches of an If must have the same outputs, so the other branch gets empty constants. Bodies of bodies and of
Scan are reported as not probed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, helper

from agent.instrument.axes import Axes
from agent.instrument.candidates import Candidate, candidates, producer_name, source
from agent.instrument.graph import Graph, bodies, captured
from agent.instrument.pooled import PooledOutputs
from agent.instrument.pooling import Pooling, PoolSource
from agent.instrument.types import Infer, TensorType, tensor_types


@dataclass(frozen=True, slots=True)
class Place:
    """Which body a probe lies in: the If or Loop's first output, and the body's attribute."""

    owner: str
    body: str


@dataclass(frozen=True, slots=True)
class Inner:
    """An activation inside a body and how it is pooled there, or why it is not."""

    candidate: Candidate
    place: Place
    source: PoolSource | str
    channels: int | None = None
    """None where the body does not say."""


def inner_activations(graph: Graph, axes: Axes, model: onnx.ModelProto, infer: Infer | None) -> Iterator[Inner]:
    """The activations in the bodies of a graph's nodes, in graph order."""
    for node in graph.nodes:
        for name, body in bodies(node) if node.output else ():
            path = f"{producer_name(node)}/{name}"
            place = Place(node.output[0], name)
            inner = Graph(body, _body_types(node, body, graph, model, infer), graph, path)
            for candidate in candidates(inner)[0]:
                how = _how(node, candidate, inner, axes)
                known = inner.types.get(candidate.tensor)
                channels = None if known is None or isinstance(how, str) else known.extent(how.layout.channels)
                if isinstance(how, PoolSource) and how.layout.whole:
                    channels = 1
                yield Inner(replace(candidate, name=f"{path}/{candidate.name}"), place, how, channels)
            for deeper in inner.nodes:
                for further, deep in bodies(deeper):
                    for candidate in candidates(Graph(deep, {}, inner))[0]:
                        full = f"{path}/{producer_name(deeper)}/{further}/{candidate.name}"
                        reason = f"inside a body of the body of {node.op_type} {producer_name(node)}"
                        yield Inner(replace(candidate, name=full), place, reason)


def probe_bodies(
    node: onnx.NodeProto, chosen: list[tuple[str, Inner]], opset: int
) -> tuple[onnx.NodeProto, dict[str, PooledOutputs], list[str]]:
    """A copy of an If or Loop that carries out pooled values of the chosen activations, given with their probe names.

    Returns the node, the pooled outputs by probe name and all added outputs.
    """
    clone = onnx.NodeProto()
    clone.CopyFrom(node)
    graphs = {item.name: item.g for item in clone.attribute if item.HasField("g")}
    pooled: dict[str, PooledOutputs] = {}
    added: list[str] = []
    for probe, inner in chosen:
        assert isinstance(inner.source, PoolSource)  # noqa: S101 - only activations that can be pooled are chosen
        body = graphs[inner.place.body]
        pooling = Pooling(opset, prefix=f"reluscope:{probe}:")
        made = pooling.add(inner.source)
        body.node.extend(pooling.nodes)
        body.initializer.extend(pooling.initializers)
        carried: dict[str, str] = {}
        for name in made.names:
            carried[name] = f"reluscope:{probe}:{len(carried)}"
            for attribute_name, graph in graphs.items():
                _add_output(graph, f"{carried[name]}:{attribute_name}", name if graph is body else None)
        clone.output.extend(carried.values())
        added.extend(carried.values())
        pooled[probe] = PooledOutputs(
            carried[made.mean],
            carried[made.maximum],
            None if made.fraction is None else carried[made.fraction],
            iterations=node.op_type == "Loop",
        )
    return clone, pooled, added


def _how(node: onnx.NodeProto, candidate: Candidate, graph: Graph, outer: Axes) -> PoolSource | str:
    if node.op_type not in ("If", "Loop"):
        return f"inside the body of {node.op_type} {producer_name(node)}"
    outputs = len(graph.outputs) - (1 if node.op_type == "Loop" else 0)
    if len(node.output) != outputs or "" in node.output:
        return f"inside {node.op_type} {producer_name(node)}, not all of whose outputs are named"
    how = source(candidate, graph, outer.of_body(graph))
    if isinstance(how, PoolSource) and how.layout.tokens:
        return f"inside {graph.path}, where its rows are tokens"
    return how


def _add_output(graph: onnx.GraphProto, name: str, tensor: str | None) -> None:
    """Adds an output: a copy of ``tensor``, or an empty constant where the value is made in another branch."""
    if tensor is None:
        empty = helper.make_tensor(f"{name}:empty", TensorProto.FLOAT, [0, 1], [])
        graph.node.append(helper.make_node("Constant", [], [name], name=name, value=empty))
    else:
        graph.node.append(helper.make_node("Identity", [tensor], [name], name=name))
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]))


def _body_types(
    node: onnx.NodeProto, body: onnx.GraphProto, outer: Graph, model: onnx.ModelProto, infer: Infer | None
) -> dict[str, TensorType]:
    """Types of a body's tensors, inferred as of a model of its own whose inputs are all that the body reads."""
    known: dict[str, TensorType] = {}
    if node.op_type == "Loop":
        known[body.input[0].name] = TensorType(TensorProto.INT64, ())
        known[body.input[1].name] = TensorType(TensorProto.BOOL, ())
        for value, given in zip(body.input[2:], node.input[2:], strict=False):
            if given in outer.types:
                known[value.name] = outer.types[given]
    constants = []
    for name in dict.fromkeys(captured(node)):
        if outer.array(name) is not None and name in outer.initializers:
            constants.append(outer.initializers[name])
        elif name in outer.types:
            known[name] = outer.types[name]
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    alone.graph.CopyFrom(body)
    del alone.graph.input[:]
    alone.graph.initializer.extend(constants)
    alone.graph.input.extend(
        helper.make_tensor_value_info(name, kind.elem_type, list(kind.shape)) for name, kind in known.items()
    )
    try:
        return known | tensor_types(alone, infer)
    except Exception:  # onnx raises bare RuntimeErrors of several kinds from C++
        return known
