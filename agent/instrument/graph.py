"""Read-only look-ups over an ONNX graph: who makes a tensor, who reads it, what type it has, which value a constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from agent.instrument.types import TensorType

_MOST_CONSTANT_ELEMENTS = 1 << 16


class Graph:
    """One graph (a model's, or the body of an If or Loop) with the types of its tensors. Never changes it."""

    def __init__(
        self, graph: onnx.GraphProto, types: Mapping[str, TensorType], outer: Graph | None = None, path: str = ""
    ) -> None:
        """``outer`` is the graph around a body, whose constants the body may read; ``path`` names the body."""
        self.proto = graph
        self.path = path
        self.nodes = tuple(graph.node)
        self.types = types
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value for value in graph.input if value.name not in self.initializers]
        self.outputs = list(graph.output)
        self._outer = outer
        self._producer = {name: node for node in self.nodes for name in node.output if name}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys([*node.input, *captured(node)]):
                self._consumers.setdefault(name, []).append(node)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes a tensor; None for inputs, initializers and tensors of an outer graph."""
        return self._producer.get(tensor)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor, in graph order."""
        return self._consumers.get(tensor, [])

    def only_consumer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that alone reads a tensor, if there is just one."""
        found = self.consumers(tensor)
        return found[0] if len(found) == 1 else None

    def is_weight(self, tensor: str) -> bool:
        """Whether a tensor is an initializer, here or in the graph around."""
        return tensor in self.initializers or (self._outer is not None and self._outer.is_weight(tensor))

    def array(self, tensor: str) -> NDArray[Any] | None:
        """The value of a small initializer or Constant, else None. Large weights may be left in the file."""
        node = self.producer(tensor)
        proto = self.initializers.get(tensor)
        if proto is None and node is not None and node.op_type == "Constant":
            found = attribute(node, "value")
            if found is None:
                return _constant_attribute(node)
            proto = found
        if proto is None:
            return self._outer.array(tensor) if self._outer is not None and node is None else None
        if np.prod(proto.dims, initial=1) > _MOST_CONSTANT_ELEMENTS or not has_data(proto):
            return None
        return np.asarray(numpy_helper.to_array(proto))

    def constant(self, tensor: str) -> float | None:
        """The value of a scalar (or one-element) constant, else None."""
        array = self.array(tensor)
        if array is None or array.size != 1 or array.dtype.kind not in "fiubV":
            return None
        return float(array.reshape(-1)[0])

    def is_constant(self, tensor: str, value: float) -> bool:
        """Whether a tensor is a constant all of whose elements are ``value``, to float16's precision."""
        array = self.array(tensor)
        if array is None or array.size == 0 or array.dtype.kind not in "fiuV":
            return False
        return bool(np.allclose(array.astype(np.float64), value, rtol=2e-3, atol=1e-9))


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """The value of a node's attribute, or None where it has no such attribute."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), None)


def text_attribute(node: onnx.NodeProto, name: str) -> str:
    """A string attribute, or the empty string."""
    value = attribute(node, name)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The attribute name and graph of each body of an If, Loop or Scan."""
    for item in node.attribute:
        if item.HasField("g"):
            yield item.name, item.g
        for number, graph in enumerate(item.graphs):
            yield f"{item.name}.{number}", graph


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors of the graph around that the bodies of a node read, at any depth."""
    for _, graph in bodies(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own.update(name for inner in graph.node for name in inner.output)
        for inner in graph.node:
            yield from (name for name in [*inner.input, *captured(inner)] if name and name not in own)
        yield from (value.name for value in graph.output if value.name not in own)


def has_data(tensor: onnx.TensorProto) -> bool:
    """Whether an initializer's values are at hand, and not left in the file or beside it."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    fields = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    return any(len(getattr(tensor, field)) for field in fields) or 0 in tensor.dims


def _constant_attribute(node: onnx.NodeProto) -> NDArray[Any] | None:
    for name in ("value_float", "value_int", "value_floats", "value_ints"):
        value = attribute(node, name)
        if value is not None:
            return np.asarray(value)
    return None
