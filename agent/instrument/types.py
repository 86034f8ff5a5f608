"""Types of tensors: what ONNX shape inference knows, completed by what a runtime knows of its own operators.

ONNX infers nothing behind an operator of another domain (`com.microsoft.FusedConv`, say). onnxruntime does, but only
for a session's outputs; so `exposed` makes a model whose outputs are all its tensors and whose weights are inputs,
small enough to be loaded just to be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, shape_inference

from agent.datatypes import ONNX, RUNTIME

Extent = int | str | None
"""A known extent, a symbol such as "N", or None for unknown."""

Infer = Callable[[bytes], Mapping[str, tuple[str, Sequence[Extent]]]]
"""Of a serialised model: the type ("tensor(float)") and shape of each of its outputs; empty where it cannot tell."""

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
"""Element types whose values are real numbers."""

_SMALL = 64  # initializers of more elements shape no tensor, so they may become inputs
_ELEM_TYPES = {RUNTIME[name]: TensorProto.DataType.Value(onnx_name) for name, onnx_name in ONNX.items()}


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type (onnx.TensorProto number) and shape."""

    elem_type: int
    shape: tuple[Extent, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    def extent(self, axis: int) -> int | None:
        """The extent of an axis where it is a known number."""
        extent = self.shape[axis]
        return extent if isinstance(extent, int) else None


def tensor_types(model: onnx.ModelProto, infer: Infer | None = None) -> dict[str, TensorType]:
    """Types of the top-level graph's tensors, as far as they can be known; raises what ONNX shape inference raises."""
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    types = declared([*graph.input, *graph.value_info, *graph.output])
    for tensor in graph.initializer:
        types[tensor.name] = TensorType(tensor.data_type, tuple(tensor.dims))
    unknown = {name for node in graph.node for name in node.output if name and name not in types}
    if unknown and infer is not None:
        for name, (kind, shape) in infer(exposed(model)).items():
            # A runtime says [] of a scalar and of a tensor of unknown rank alike, and neither can be pooled.
            if name in unknown and kind in _ELEM_TYPES and shape:
                types[name] = TensorType(_ELEM_TYPES[kind], tuple(extent or None for extent in shape))
    return types


def declared(values: Iterable[onnx.ValueInfoProto]) -> dict[str, TensorType]:
    """The types of values that are dense tensors of known rank."""
    return dict(_declared(values))


def exposed(model: onnx.ModelProto) -> bytes:
    """The model with every tensor as an output and every large weight as an input: for type inference only."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    graph = clone.graph
    large = [tensor for tensor in graph.initializer if _elements(tensor) > _SMALL]
    given = {value.name for value in graph.input}
    for tensor in large:
        graph.initializer.remove(tensor)
        if tensor.name not in given:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    present = {value.name for value in graph.output}
    for name in dict.fromkeys(name for node in graph.node for name in node.output):
        if name and name not in present:
            graph.output.append(onnx.ValueInfoProto(name=name))
    return clone.SerializeToString()


def _declared(values: Iterable[onnx.ValueInfoProto]) -> Iterator[tuple[str, TensorType]]:
    for value in values:
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.HasField("shape"):
            yield value.name, TensorType(tensor.elem_type, tuple(_extent(dim) for dim in tensor.shape.dim))


def _extent(dim: onnx.TensorShapeProto.Dimension) -> Extent:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param or None


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for extent in tensor.dims:
        count *= extent
    return count
