"""What observing a model is estimated to cost, from the shapes of its tensors alone.

Pooling passes five times over the memory of an activation: mean and maximum read it, the step reads and writes it, and
the fraction reads the step. Against that stands what the model does itself: its multiplications, and the writing and
reading of each layer's output. The one constant that is needed, how many floating-point operations a CPU does while it
moves a byte, was taken from ResNet-50 (tests/bench/capture.py). The agent measures the true cost when it loads a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.instrument.graph import Graph
from agent.instrument.types import Extent, TensorType

_PASSES = 5
_VALUES = 3  # pooled values of a channel: mean, maximum, fraction
_FLOAT_BYTES = 4
_OPERATIONS_PER_BYTE = 4.9
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "ConvTranspose", "QLinearConv", "ConvInteger", "NhwcFusedConv"})
_PRODUCTS = frozenset({"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "QGemm"})
_WEIGHTS = {"QLinearConv": 3}


@dataclass(frozen=True, slots=True)
class Cost:
    """All figures are per request."""

    elements: Mapping[str, int | None]
    """By probe name: elements of the probed tensor; None where an extent is free."""
    dense: Mapping[str, bool]
    """By probe name: whether it needs no pooling."""
    given: frozenset[str]
    """Probes that are read from the request and not fetched."""
    operations: float
    """Floating-point operations of the model's convolutions and matrix products."""
    moved_bytes: float
    """Bytes that these write and their readers read."""
    complete: bool
    """Whether all extents that the operations depend on are known."""

    def pooling_bytes(self, probe: str) -> int | None:
        """Bytes that pooling one probe moves; None where an extent is free."""
        elements = self.elements[probe]
        return None if elements is None else 0 if self.dense[probe] else _PASSES * _FLOAT_BYTES * elements

    def fetched_bytes(self, probe: str, channels: int | None) -> int | None:
        """Bytes of one probe that leave the device."""
        if probe in self.given:
            return 0
        return None if channels is None else channels * _FLOAT_BYTES * (1 if self.dense[probe] else _VALUES)

    @property
    def ratio(self) -> float | None:
        """Instrumented over plain time on CPU with all probes in every batch; None where extents are free."""
        moved = [self.pooling_bytes(name) for name in self.elements]
        own = self.operations / _OPERATIONS_PER_BYTE + self.moved_bytes
        if not self.complete or own == 0 or any(count is None for count in moved):
            return None
        return 1 + sum(count for count in moved if count is not None) / own


def own_work(graph: Graph, batch: str | None) -> tuple[float, float, bool]:
    """Operations and moved bytes per request of a model's convolutions and products, and whether all are counted."""
    operations, moved, complete = 0.0, 0.0, True
    for node in graph.nodes:
        place = _WEIGHTS.get(node.op_type, 1)
        if len(node.input) <= place or not node.output:
            continue
        if node.op_type in _CONVOLUTIONS:
            weights = graph.types.get(node.input[place])
            factor = None if weights is None else _product(weights.shape[1:])
        elif node.op_type in _PRODUCTS:
            first = graph.types.get(node.input[0])
            factor = None if first is None or first.rank == 0 else first.extent(first.rank - 1)
        else:
            continue
        made = graph.types.get(node.output[0])
        count = None if made is None else per_request(made, made.shape.index(batch) if batch in made.shape else 0)
        if factor is None or count is None:
            complete = False
            continue
        operations += 2.0 * factor * count
        moved += 2.0 * _FLOAT_BYTES * count
    return operations, moved, complete


def per_request(known: TensorType, requests: int) -> int | None:
    """Elements of one request; None where an extent is free."""
    return _product(extent for axis, extent in enumerate(known.shape) if axis != requests)


def _product(extents: Iterable[Extent]) -> int | None:
    count = 1
    for extent in extents:
        if not isinstance(extent, int):
            return None
        count *= extent
    return count
