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
from contextlib import AbstractContextManager
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, shape_inference

from agent.instrument.errors import InstrumentError
from agent.instrument.files import ModelFile, SessionModel
from agent.instrument.quantized import KEEP_INT8, OUTPUT_SCALE
from agent.instrument.types import FLOATS

_SAME_SCALE = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity"})
"""Operators that hand quantized numbers on as they are."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """A model whose outputs are some tensors of another model, as floats."""

    file: ModelFile
    """The other model."""
    light: onnx.ModelProto
    """The model, without the weights that are still in the file."""
    outputs: dict[str, str]
    """Tensor of the other model to the output that has its values."""
    inner: bool
    """Whether a tensor is fetched that is no output of the other model."""

    @property
    def weight_bytes(self) -> int:
        """About how much memory one session takes for its weights."""
        return self.file.size

    def session_model(self) -> AbstractContextManager[SessionModel]:
        """What a session is made of; good inside the block."""
        return self.file.session_model(self.light, {KEEP_INT8: "1"} if self.inner else {})


class WholeGraph:
    """A model whose tensors are to be fetched whole. Never changes the model."""

    def __init__(self, model: onnx.ModelProto | ModelFile) -> None:
        """Raises InstrumentError where the model's local functions cannot be inlined."""
        self._file = model if isinstance(model, ModelFile) else ModelFile(model)
        try:
            self._model = self._file.inlined()
        except Exception as error:  # onnx raises bare RuntimeErrors of several kinds from C++
            raise InstrumentError(f"the model's local functions cannot be inlined: {error}") from error
        graph = self._model.graph
        weights = {tensor.name for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in weights)
        self.outputs = tuple(value.name for value in graph.output if value.type.tensor_type.elem_type in FLOATS)
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
            InstrumentError: the model has no such tensor.
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
        return Exposed(self._file, clone, outputs, not declared.keys() >= set(outputs.values()))

    def bytes_per_request(self, shapes: Mapping[str, Sequence[int]], requests: int) -> dict[str, int]:
        """Bytes of each tensor when fetched, per request, for ``requests`` that are inputs of these ``shapes``.

        Tensors whose size does not follow from that are left out.
        """
        try:
            graph = shape_inference.infer_shapes(self._clone(shapes)).graph
        except Exception:  # onnx raises bare errors of several kinds; sizes are then found out by running
            return {}
        known = {}
        for value in [*graph.input, *graph.value_info, *graph.output]:
            kind = value.type.tensor_type
            extents = [dim.dim_value for dim in kind.shape.dim]
            if kind.HasField("shape") and all(extent > 0 for extent in extents):
                itemsize = 8 if kind.elem_type == TensorProto.DOUBLE else 4
                known[value.name] = -(-math.prod(extents) * itemsize // requests)
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
            place = OUTPUT_SCALE[node.op_type]
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
        if node is None or len(node.input) <= OUTPUT_SCALE.get(node.op_type, len(node.input)):
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
