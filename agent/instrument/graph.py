"""Read-only questions about an ONNX graph: who makes a tensor, what type it has, along which axis its channels lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper, numpy_helper, shape_inference

_CHANNELS_SECOND = frozenset(
    """
    Conv ConvTranspose ConvInteger QLinearConv FusedConv BatchNormalization InstanceNormalization
    GroupNormalization MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool LRN DepthToSpace SpaceToDepth
    Upsample Resize
    """.split()  # noqa: SIM905 - a list of 50 quoted words is harder to read
)
_CHANNELS_LAST = frozenset(
    """
    MatMul Gemm FusedGemm FusedMatMul MatMulInteger QLinearMatMul LayerNormalization SimplifiedLayerNormalization
    SkipLayerNormalization
    """.split()  # noqa: SIM905 - a list of 50 quoted words is harder to read
)
_CHANNELS_KEPT = frozenset(
    """
    Relu LeakyRelu PRelu ThresholdedRelu Clip Elu Selu Celu HardSwish Gelu Softplus Mish Sigmoid Tanh Softmax
    LogSoftmax HardSigmoid Erf Sqrt Pow Exp Neg Abs Add Sub Mul Div Max Min Sum Mean Identity Dropout Cast Concat
    Pad QuantizeLinear DequantizeLinear
    """.split()  # noqa: SIM905 - a list of 50 quoted words is harder to read
)
_MAX_STEPS = 64


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type (onnx.TensorProto number) and shape, None where an extent is symbolic or unknown."""

    elem_type: int
    shape: tuple[int | None, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


class Graph:
    """Look-ups over the top-level graph of a model, with inferred shapes. Never changes the model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = shape_inference.infer_shapes(model).graph
        self.nodes = tuple(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value for value in graph.input if value.name not in self.initializers]
        self.outputs = list(graph.output)
        self.types = dict(_types([*graph.input, *graph.value_info, *graph.output]))
        self._producer = {name: node for node in self.nodes for name in node.output if name}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def constant(self, name: str) -> float | None:
        """The value of a scalar initializer or Constant, else None."""
        tensor = self.initializers.get(name)
        producer = self._producer.get(name)
        if tensor is None and producer is not None and producer.op_type == "Constant":
            tensor = attribute(producer, "value")
        if tensor is None:
            return None
        array = numpy_helper.to_array(tensor)
        return float(array.reshape(-1)[0]) if array.size == 1 else None

    def channel_axis(self, tensor: str) -> int | None:
        """The channel axis of a tensor, from what makes it, else from what reads it, else by convention of its rank.

        None where the rank is unknown or below 2.
        """
        known = self.types.get(tensor)
        if known is None or known.rank < 2:
            return None
        axis = self._axis_from_producer(tensor, _MAX_STEPS)
        if axis is None:
            axis = self._axis_from_consumers(tensor, known.rank, _MAX_STEPS)
        if axis is None:
            axis = 2 if known.rank == 3 else 1
        return axis if axis < known.rank else None

    def _axis_from_producer(self, tensor: str, steps: int) -> int | None:
        node, known = self._producer.get(tensor), self.types.get(tensor)
        if node is None or known is None or steps == 0:
            return None
        if node.op_type in _CHANNELS_SECOND:
            return 1
        if node.op_type in _CHANNELS_LAST:
            return known.rank - 1
        if node.op_type == "Transpose":
            source = self._axis_from_producer(node.input[0], steps - 1)
            perm = list(attribute(node, "perm") or reversed(range(known.rank)))
            return None if source is None else perm.index(source)
        if node.op_type in _CHANNELS_KEPT:
            for name in node.input:
                other = self.types.get(name)
                if name in self.initializers or other is None or other.rank != known.rank:
                    continue
                axis = self._axis_from_producer(name, steps - 1)
                if axis is not None:
                    return axis
        return None

    def _axis_from_consumers(self, tensor: str, rank: int, steps: int) -> int | None:
        if steps == 0:
            return None
        for node in self._consumers.get(tensor, ()):
            axis: int | None = None
            if node.op_type in _CHANNELS_SECOND:
                axis = 1
            elif node.op_type in _CHANNELS_LAST:
                axis = rank - 1
            elif node.op_type == "Transpose":
                later = self._axis_from_consumers(node.output[0], rank, steps - 1)
                perm = list(attribute(node, "perm") or reversed(range(rank)))
                axis = None if later is None else int(perm[later])
            elif node.op_type in _CHANNELS_KEPT:
                axis = self._axis_from_consumers(node.output[0], rank, steps - 1)
            if axis is not None:
                return axis
        return None


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """The value of a node's attribute, or None where it has no such attribute."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), None)


def subgraph_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """All nodes in the bodies of an If, Loop or Scan, at any depth."""
    for item in node.attribute:
        for graph in [item.g] if item.HasField("g") else list(item.graphs):
            for inner in graph.node:
                yield inner
                yield from subgraph_nodes(inner)


def _types(values: list[onnx.ValueInfoProto]) -> Iterator[tuple[str, TensorType]]:
    for value in values:
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.HasField("shape"):
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
            yield value.name, TensorType(tensor.elem_type, shape)
