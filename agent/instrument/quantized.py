"""Rectifiers of quantized models: where zero is the smallest number of the type, quantizing clips as a Relu would.

Quantizers drop a Relu whose output is quantized with the type's minimum as zero point; what remains of it is that zero
point. Such tensors are probed where something that can be negative makes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from agent.instrument.graph import Graph

_CAN_BE_NEGATIVE = frozenset(
    """
    Conv ConvTranspose Gemm MatMul Add Sub Sum Mul BatchNormalization InstanceNormalization LayerNormalization
    QLinearConv QLinearMatMul QLinearAdd QLinearMul QGemm FusedMatMul
    """.split()  # noqa: SIM905 - a list of 20 quoted words is harder to read
)
KEEP_INT8 = "session.qdqisint8allowed"
"""Session option without which onnxruntime on x86 turns int8 into uint8 wherever a quantized tensor has one reader.

A tensor that is observed has two, so it would stay int8 where its layer's output does not, and the layer would be
computed in floats. With the option all stay int8; the arithmetic is in integers, the outputs are the served model's.
"""
OUTPUT_SCALE = {
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
_LOWEST: dict[int, int] = {
    TensorProto.UINT8: 0,
    TensorProto.UINT16: 0,
    TensorProto.INT8: -(1 << 7),
    TensorProto.INT16: -(1 << 15),
}
_SUFFIXES = ("_QuantizeLinear_Output", "_QuantizeLinear_Input", "_DequantizeLinear_Output", "_quantized")


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a tensor is quantized: real = (integer - zero_point) * scale."""

    scale: float
    zero_point: int
    zero_point_name: str
    """The constant that holds the zero point; empty where it is left out, and then 0."""
    domain: str
    """Of the QuantizeLinear and DequantizeLinear."""


@dataclass(frozen=True, slots=True)
class QuantizedActivation:
    """A quantized tensor that is an activation."""

    node: onnx.NodeProto
    op: str
    exact_zero: bool
    quantization: Quantization

    @property
    def tensor(self) -> str:
        return str(self.node.output[0])

    @property
    def name(self) -> str:
        """The name that the float model's tensor had, as far as quantizers keep it."""
        return stem(self.node.input[0] if self.node.op_type == "QuantizeLinear" else self.tensor)


def quantized_activations(graph: Graph, rectified: set[str]) -> Iterator[QuantizedActivation]:
    """Quantized rectifiers in graph order; ``rectified`` are tensors that are rectified before they are quantized."""
    for node in graph.nodes:
        how = quantization(node, graph)
        if how is None:
            continue
        if node.op_type == "QLinearLeakyRelu":
            yield QuantizedActivation(node, node.op_type, False, how)
            continue
        source = graph.producer(node.input[0])
        maker = node if node.op_type != "QuantizeLinear" else source
        if maker is None or maker.op_type not in _CAN_BE_NEGATIVE or node.input[0] in rectified:
            continue
        if _is_lowest(how.zero_point, node.output[0], graph):
            yield QuantizedActivation(node, f"{maker.op_type}+zero point", True, how)


def quantization(node: onnx.NodeProto, graph: Graph) -> Quantization | None:
    """How a node's output is quantized; None where it is not, or not by one scalar scale and zero point."""
    place = OUTPUT_SCALE.get(node.op_type)
    if place is None or len(node.input) <= place:
        return None
    scale = graph.constant(node.input[place])
    given = node.input[place + 1] if len(node.input) > place + 1 else ""
    zero_point = graph.constant(given) if given else 0.0
    if scale is None or zero_point is None:
        return None
    domain = node.domain if node.op_type == "QuantizeLinear" else ""
    return Quantization(scale, int(zero_point), given, domain)


def stem(tensor: str) -> str:
    """A tensor's name without what quantizers append to it."""
    for suffix in _SUFFIXES:
        tensor = tensor.removesuffix(suffix)
    return tensor


def _is_lowest(zero_point: int, tensor: str, graph: Graph) -> bool:
    """Whether a zero point is the smallest number of the tensor's type."""
    known = graph.types.get(tensor)
    return known is not None and _LOWEST.get(known.elem_type) == zero_point
