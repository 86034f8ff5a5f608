"""Along which axis of a tensor its channels lie, and along which its requests.

The channel axis follows from what makes a tensor, else from what reads it, else by the convention of its rank. The
request axis follows from the symbol of the batch extent, which shape inference carries through the graph: models with
time first, (T, N, C), or with recurrent state, (layers, N, C), have it elsewhere than in front.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from agent.instrument.batches import RECURRENT
from agent.instrument.graph import Graph, attribute
from agent.instrument.types import TensorType

_CHANNELS_SECOND = frozenset(
    """
    Conv ConvTranspose ConvInteger QLinearConv FusedConv BatchNormalization InstanceNormalization
    GroupNormalization MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool LRN DepthToSpace SpaceToDepth
    Upsample Resize QLinearGlobalAveragePool QLinearAveragePool DeformConv ReorderOutput
    """.split()  # noqa: SIM905 - a list of 60 quoted words is harder to read
)
_CHANNELS_LAST = frozenset(
    """
    MatMul Gemm FusedGemm FusedMatMul MatMulInteger MatMulNBits QLinearMatMul QGemm DynamicQuantizeMatMul
    MatMulIntegerToFloat LayerNormalization RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization
    SkipSimplifiedLayerNormalization EmbedLayerNormalization Attention MultiHeadAttention LSTM GRU RNN
    NhwcConv NhwcFusedConv NhwcMaxPool
    """.split()  # noqa: SIM905 - a list of 60 quoted words is harder to read
)
_CHANNELS_KEPT = frozenset(
    """
    Relu LeakyRelu PRelu ThresholdedRelu Clip Elu Selu Celu HardSwish Gelu FastGelu QuickGelu BiasGelu Swish Softplus
    Mish Sigmoid Tanh Softmax LogSoftmax HardSigmoid Erf Sqrt Pow Exp Neg Abs Add Sub Mul Div Max Min Sum Mean Where
    Identity Dropout Cast Concat Pad Slice Split Expand QuantizeLinear DequantizeLinear QLinearAdd QLinearMul
    QLinearLeakyRelu QLinearSigmoid QLinearConcat
    """.split()  # noqa: SIM905 - a list of 60 quoted words is harder to read
)
_MAX_STEPS = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a tensor's requests and channels lie."""

    requests: int
    channels: int
    tokens: bool = False
    """Whether the first axis holds requests times tokens, request by request, as in (N * T, C)."""
    whole: bool = False
    """Whether all of a request is one channel, for no axis has an extent that stays: a score for each token, (N, T).
    ``channels`` is 0 then."""


class Axes:
    """Answers for one graph."""

    def __init__(self, graph: Graph, batch: str | None, in_front: bool = True) -> None:
        """``batch`` is the symbol of the batch extent, from `agent.instrument.batches`.

        ``in_front`` says whether inputs have their requests on the first axis. Then so have tensors whose batch extent
        shape inference lost sight of; where time comes first nothing is known of those.
        """
        self._graph = graph
        self._types = graph.types
        self.batch = batch
        self._in_front = in_front
        shapes = [graph.types[value.name].shape for value in graph.inputs if value.name in graph.types]
        self._free = frozenset(extent for shape in shapes for extent in shape if isinstance(extent, str)) - {batch}

    def of_body(self, body: Graph) -> Axes:
        """The axes of a body of this graph, which has the same batch."""
        axes = Axes(body, self.batch, self._in_front)
        axes._free |= self._free
        return axes

    def layout(self, tensor: str) -> Layout | None:
        """None where the rank is unknown or below 2, or where it cannot be told where the requests are."""
        known = self._types.get(tensor)
        if known is None or known.rank < 2:
            return None
        requests = self._request_axis(known)
        if requests is None:
            return None
        if requests == 0 and known.rank == 2 and self._is_flattened(tensor, _MAX_STEPS):
            return Layout(0, 1, tokens=True)
        channels = self.channel_axis(tensor)
        if channels == requests and known.rank == 2:
            channels = 1 - requests
        if channels is None or channels == requests:
            return None
        if not self._changes(tensor, channels):
            return Layout(requests, channels)
        fixed = [axis for axis in range(known.rank) if axis != requests and known.extent(axis) is not None]
        return Layout(requests, fixed[0]) if len(fixed) == 1 else Layout(requests, 0, whole=True)

    def channel_axis(self, tensor: str) -> int | None:
        """The channel axis; None where the rank is unknown or below 2."""
        known = self._types.get(tensor)
        if known is None or known.rank < 2:
            return None
        axis = self._from_producer(tensor, _MAX_STEPS)
        if axis is None:
            axis = self._from_consumers(tensor, known.rank, _MAX_STEPS)
        if axis is None:
            axis = 2 if known.rank == 3 else 1
        return axis if axis < known.rank else None

    def _changes(self, tensor: str, axis: int) -> bool:
        """Whether an extent changes from request to request: an input has it too, and no weight holds it in place."""
        extent = self._types[tensor].shape[axis]
        return isinstance(extent, str) and extent in self._free and not self._is_held(tensor, axis, _MAX_STEPS)

    def _is_held(self, tensor: str, axis: int, steps: int) -> bool:
        """Whether a weight that the tensor meets tells the extent, so that its symbol is a name and no freedom."""
        rank = self._types[tensor].rank
        for node in self._graph.consumers(tensor) if steps else ():
            named = [self._types.get(name) for name in node.input[1:] if self._graph.is_weight(name)]
            weights = [one for one in named if one is not None and one.rank]
            if node.input[0] == tensor and _stated(node, rank) == axis and any(one.rank > 1 for one in weights):
                return True
            if node.op_type not in _CHANNELS_KEPT or not node.output or node.output[0] not in self._types:
                continue
            if any(one.extent(-1) not in (None, 1) for one in weights) and axis == rank - 1:
                return True
            if self._types[node.output[0]].rank == rank and self._is_held(node.output[0], axis, steps - 1):
                return True
        return False

    def _request_axis(self, known: TensorType) -> int | None:
        if self.batch is not None and self.batch in known.shape:
            return known.shape.index(self.batch)
        return 0 if self._in_front else None

    def _is_flattened(self, tensor: str, steps: int) -> bool:
        """Whether rows are tokens: the tensor comes, row by row, from a Reshape of (N, T, C) to (N * T, C)."""
        node, known = self._graph.producer(tensor), self._types.get(tensor)
        if node is None or known is None or known.rank != 2 or steps == 0:
            return False
        if self.batch is not None and known.shape[0] == self.batch:
            return False
        if node.op_type == "Reshape":
            source = self._types.get(node.input[0])
            return (
                source is not None
                and source.rank == 3
                and source.extent(2) is not None
                and source.shape[2] == known.shape[1]
                and self._request_axis(source) == 0
            )
        if node.op_type in _CHANNELS_KEPT or node.op_type in _CHANNELS_LAST:
            return any(self._is_flattened(name, steps - 1) for name in node.input if not self._graph.is_weight(name))
        return False

    def _from_producer(self, tensor: str, steps: int) -> int | None:
        node, known = self._graph.producer(tensor), self._types.get(tensor)
        if node is None or known is None or steps == 0:
            return None
        axis = _stated(node, known.rank)
        if axis is not None:
            return axis
        source = node.input[0] if node.input else ""
        if node.op_type in ("Transpose", "Squeeze", "Unsqueeze", "Reshape"):
            before, inner = self._types.get(source), self._from_producer(source, steps - 1)
            return None if before is None or inner is None else self._moved(node, inner, before, known)
        if node.op_type in _CHANNELS_KEPT:
            for name in node.input:
                other = self._types.get(name)
                if self._graph.is_weight(name) or other is None or other.rank != known.rank:
                    continue
                axis = self._from_producer(name, steps - 1)
                if axis is not None:
                    return axis
        return None

    def _from_consumers(self, tensor: str, rank: int, steps: int) -> int | None:
        if steps == 0:
            return None
        for node in self._graph.consumers(tensor):
            if tensor not in node.input[:1] and node.op_type not in _CHANNELS_KEPT:
                continue  # read as a second operand, or by a body
            axis = _stated(node, rank)
            if axis is None and node.op_type == "Transpose":
                later = self._from_consumers(node.output[0], rank, steps - 1)
                axis = None if later is None else _permutation(node, rank)[later]
            elif axis is None and node.op_type in _CHANNELS_KEPT:
                axis = self._from_consumers(node.output[0], rank, steps - 1)
            if axis is not None:
                return axis
        return None

    def _moved(self, node: onnx.NodeProto, axis: int, before: TensorType, after: TensorType) -> int | None:
        """Where a Transpose, Squeeze, Unsqueeze or Reshape puts the axis; None where that cannot be told."""
        if node.op_type == "Transpose":
            return _permutation(node, before.rank).index(axis)
        if node.op_type == "Reshape":
            extent = before.extent(axis)
            for place in (axis, after.rank - before.rank + axis):  # counted from the front, and from the back
                if extent is not None and 0 < place < after.rank and after.shape[place] == extent:
                    return place
            return None
        given = attribute(node, "axes")
        if given is None and len(node.input) > 1:
            array = self._graph.array(node.input[1])
            given = None if array is None else array.reshape(-1).tolist()
        if given is None:
            return None
        if node.op_type == "Squeeze":
            gone = {place % before.rank for place in given}
            return None if axis in gone else axis - sum(place < axis for place in gone)
        added = {place % after.rank for place in given}
        return [place for place in range(after.rank) if place not in added][axis]


def _stated(node: onnx.NodeProto, rank: int) -> int | None:
    """The channel axis of what an operator reads and makes, where the operator alone settles it."""
    if attribute(node, "channels_last") == 1 and node.op_type not in RECURRENT:
        return rank - 1
    if node.domain == "com.microsoft.nchwc" or node.op_type in _CHANNELS_SECOND:
        return 1
    return rank - 1 if node.op_type in _CHANNELS_LAST else None


def _permutation(node: onnx.NodeProto, rank: int) -> list[int]:
    return [int(axis) for axis in attribute(node, "perm") or reversed(range(rank))]
