"""Whole activations of a model: which tensors can be fetched as floats, how large they are, and a model to do it with.

Nothing is pooled here: this serves paired replay, which compares two models element by element, inside the agent.
What is fetched of a quantized tensor is what its reader sees of it, so that quantization noise is in it:

    Conv                  Conv
     |                     |
    QuantizeLinear        QuantizeLinear
     |                     |
    DequantizeLinear      DequantizeLinear --> fetched for any of the three tensors
     |                     |
    Conv                  Conv

A quantized tensor that no DequantizeLinear reads (of QLinearConv, say) gets one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, shape_inference

from agent.instrument import InstrumentError

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_OUTPUT_SCALE = {
    "QuantizeLinear": 1,
    "QLinearConv": 6,
    "QLinearMatMul": 6,
    "QLinearAdd": 6,
    "QLinearMul": 6,
    "QGemm": 7,
    "QLinearConcat": 0,
    "QLinearAveragePool": 3,
    "QLinearGlobalAveragePool": 3,
    "QLinearLeakyRelu": 3,
    "QLinearSigmoid": 3,
    "QLinearSoftmax": 3,
}
"""Operator to the input that holds its output's scale; the zero point is the next input."""
_SAME_SCALE = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity"})
"""Operators that hand quantized numbers on as they are."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """A serialised model whose outputs are some tensors of another model, as floats."""

    model: bytes
    outputs: dict[str, str]
    """Tensor of the original model to the output that has its values."""


class WholeGraph:
    """A model whose tensors are to be fetched whole. Never changes the model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        graph = model.graph
        weights = {tensor.name for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in weights)
        self.outputs = tuple(value.name for value in graph.output if value.type.tensor_type.elem_type in _FLOATS)
        """The float outputs, in order: the ones that can be compared."""
        self._producer = {name: node for node in graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self.tensors = frozenset(self._producer) | frozenset(self.inputs)

    def only_reader_output(self, tensor: str) -> str | None:
        """What the only node that reads a tensor makes of it; None where several read it, or none."""
        readers = self._readers.get(tensor, [])
        return str(readers[0].output[0]) if len(readers) == 1 and len(readers[0].output) else None

    def expose(self, tensors: Sequence[str], shapes: Mapping[str, Sequence[int]] | None = None) -> Exposed:
        """A model with just ``tensors`` as its outputs, and its inputs of just these ``shapes``, where given.

        Raises:
            InstrumentError: the model has no such tensor, or is too large to be serialised.
        """
        missing = [tensor for tensor in tensors if tensor not in self.tensors]
        if missing:
            raise InstrumentError(f"the model has no tensor {missing[0]!r} in its top-level graph")
        clone = self._clone(shapes or {})
        outputs = {tensor: self._source(tensor, clone.graph) for tensor in tensors}
        declared = {value.name: value for value in self._model.graph.output}
        del clone.graph.output[:]
        for name in dict.fromkeys(outputs.values()):
            clone.graph.output.append(declared.get(name) or onnx.ValueInfoProto(name=name))
        try:
            return Exposed(clone.SerializeToString(), outputs)
        except ValueError as error:  # protobuf's limit
            raise InstrumentError(f"a model above 2 GiB cannot be compared: {error}") from error

    def bytes_per_request(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Bytes of each tensor when fetched, for inputs of these shapes, per request; without those nobody can tell."""
        try:
            graph = shape_inference.infer_shapes(self._clone(shapes)).graph
        except Exception:  # onnx raises bare errors of several kinds; sizes are then found out by running
            return {}
        requests = max((shape[0] for shape in shapes.values() if len(shape)), default=1)
        known = {}
        for value in [*graph.input, *graph.value_info, *graph.output]:
            kind = value.type.tensor_type
            extents = [dim.dim_value for dim in kind.shape.dim]
            if kind.HasField("shape") and all(extent > 0 for extent in extents):
                itemsize = 8 if kind.elem_type == TensorProto.DOUBLE else 4
                known[value.name] = -(-math.prod(extents) * itemsize // max(requests, 1))
        return known

    def _clone(self, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
        """A copy of the model, with inputs of these shapes."""
        clone = onnx.ModelProto()
        clone.CopyFrom(self._model)
        for value in clone.graph.input:
            for dim, extent in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
                dim.dim_value = extent
        return clone

    def _source(self, tensor: str, graph: onnx.GraphProto) -> str:
        """The float tensor to fetch for ``tensor``; nodes that it needs are added to ``graph``."""
        for reader in self._readers.get(tensor, []):
            if reader.op_type == "DequantizeLinear" and reader.input[0] == tensor:
                return str(reader.output[0])
        for reader in self._readers.get(tensor, []):
            if reader.op_type == "QuantizeLinear" and reader.input[0] == tensor:
                return self._source(reader.output[0], graph)
        node = self._quantizing(tensor)
        if node is not None:
            place = _OUTPUT_SCALE[node.op_type]
            parameters = [name for name in node.input[place : place + 2] if name]
            domain = node.domain if node.op_type == "QuantizeLinear" else ""
            return _append(graph, "DequantizeLinear", [tensor, *parameters], tensor, domain=domain)
        if self._is_bfloat16(tensor):  # numpy has no such type
            return _append(graph, "Cast", [tensor], tensor, to=TensorProto.FLOAT)
        return tensor

    def _quantizing(self, tensor: str) -> onnx.NodeProto | None:
        """The node that says how a quantized tensor is quantized; None for tensors that are not."""
        node = self._producer.get(tensor)
        while node is not None and node.op_type in _SAME_SCALE and node.output[0] == tensor:
            tensor = node.input[0]
            node = self._producer.get(tensor)
        if node is None or len(node.input) <= _OUTPUT_SCALE.get(node.op_type, len(node.input)):
            return None
        return node

    def _is_bfloat16(self, tensor: str) -> bool:
        graph = self._model.graph
        return any(
            value.name == tensor and value.type.tensor_type.elem_type == TensorProto.BFLOAT16
            for values in (graph.input, graph.value_info, graph.output)
            for value in values
        )


def _append(graph: onnx.GraphProto, op: str, inputs: list[str], tensor: str, **attributes: int | str) -> str:
    output = f"reluscope:{tensor}:whole"
    if not any(output in node.output for node in graph.node):
        graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))  # type: ignore[arg-type]
    return output
