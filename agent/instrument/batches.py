"""What a graph says of its batch: the symbol of the extent, and the axes that inputs have their requests on."""

from __future__ import annotations

from agent.instrument.graph import Graph, attribute

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Operators that say themselves on which axis the requests are."""


def batch_symbol(graph: Graph) -> str | None:
    """The symbol of the batch extent; None where the model's batch is fixed or nothing is said.

    What a recurrent operator reads settles it, else a name that means a batch on one of the first two axes of an input:
    (T, N, C) has its requests behind the time. Else it is the symbol in front of the first input that has one there.
    """
    shapes = [graph.types[value.name].shape for value in graph.inputs if value.name in graph.types]
    for node in graph.nodes:
        known = graph.types.get(node.input[0]) if node.op_type in RECURRENT and node.input else None
        if known is not None and known.rank == 3:
            extent = known.shape[0 if attribute(node, "layout") == 1 else 1]
            if isinstance(extent, str) and any(extent in shape for shape in shapes):
                return extent
    leading = [shape[0] for shape in shapes if shape and isinstance(shape[0], str)]
    second = [shape[1] for shape in shapes if len(shape) > 2 and isinstance(shape[1], str)]
    named = [extent for extent in [*leading, *second] if isinstance(extent, str) and _means_batch(extent)]
    return next(iter([*named, *leading]), None)


def input_axes(graph: Graph, batch: str | None) -> dict[str, int | None]:
    """Of each graph input, the axis along which requests are stacked; None for one that all requests share."""
    shapes = {value.name: graph.types[value.name].shape for value in graph.inputs if value.name in graph.types}
    if batch is not None:
        return {name: shape.index(batch) if batch in shape else None for name, shape in shapes.items()}
    first = next((shape[0] for shape in shapes.values() if shape), None)
    if first is None:  # nothing is said about extents: requests come first, as everywhere
        return {name: 0 if shape else None for name, shape in shapes.items()}
    return {name: shape.index(first) if first in shape else None for name, shape in shapes.items()}


def _means_batch(symbol: str) -> bool:
    return "batch" in symbol.lower() or symbol.lower() in ("n", "b", "bs", "bsz")
