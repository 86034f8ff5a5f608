"""The nodes that reduce one tensor to pooled values of shape (requests, channels) inside the graph.

    Before              After
    Conv                Conv
     |                   |
    Relu                Relu ---> HardSigmoid(1e30, 0) -> GlobalAveragePool -> Flatten   share of positive elements
     |                   |  \\--> GlobalAveragePool -> Flatten                            mean
    ...                 ...  \\-> GlobalMaxPool -> Flatten                               maximum

These operators exist since opset 1 and stay inside onnxruntime's blocked NCHWc layout on CPU. A dense tensor (requests,
channels) is fetched as it is: each element is its own mean and maximum. Elsewhere a tensor is brought there first:
(N * T, C) is folded to (N, T, C), requests are transposed to the front, and what has no channels, (N, T), becomes
(N, 1, T).

Quantized tensors are dequantized with a scale of 1 and the pooled values scaled. With the model's own scale onnxruntime
would merge our DequantizeLinear with the model's, and with another operator it could not change the tensor's type as it
likes to; in both cases it would compute the next layer in floats, as the served model does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from agent.instrument.axes import Layout
from agent.instrument.pooled import PooledOutputs
from agent.instrument.quantized import Quantization

BLOCKED = "com.microsoft.nchwc"
"""Domain of onnxruntime's operators on tensors in blocks of channels, found in models optimised offline."""

_POSITIVE_STEP = 1e30  # alpha of a HardSigmoid that is 1 for every float above 1e-30 and 0 at 0 and below
_MOST_SPATIAL_AXES = 3  # of onnxruntime's pooling
_SIDE_BY_SIDE = 16  # steps of a sequence whose channels are compared at once
_AXES_ARE_INPUT = 18  # opset from which ReduceMean and ReduceMax take their axes as an input


@dataclass(frozen=True, slots=True)
class PoolSource:
    """A tensor to be pooled."""

    tensor: str
    elem_type: int
    rank: int
    layout: Layout
    quantization: Quantization | None = None
    steps: int | None = None
    """Extent of the middle axis of (requests, steps, channels), where it is known."""
    blocked: int | None = None
    """Channels of a tensor in onnxruntime's blocked layout; None for plain tensors."""

    @property
    def dense(self) -> bool:
        """Whether each request has one value per channel, so that nothing needs pooling."""
        return self.rank == 2 and not self.layout.tokens and not self.layout.whole

    @property
    def given(self) -> bool:
        """Whether an input's pooled values are what the request brought: they need no way through the device."""
        return self.dense and self.layout.requests == 0 and self.quantization is None


class Pooling:
    """Makes the nodes, constants and outputs to be added to one graph."""

    def __init__(self, opset: int, requests_from: str | None = None, prefix: str = "reluscope:") -> None:
        """``requests_from`` is a tensor whose first axis are the requests, needed to fold tokens."""
        self.initializers: list[onnx.TensorProto] = []
        self.outputs: list[str] = []
        self._visits: list[list[onnx.NodeProto]] = []
        self._steps: list[onnx.NodeProto] = []
        self._opset = opset
        self._requests_from = requests_from
        self._prefix = prefix

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """All nodes, those that should run last first.

        onnxruntime schedules a graph from its last leaf backwards. In this order it pools each activation as soon as it
        is there; in the other, all activations would be kept until the model is through. The step of a layer comes
        behind the pooling of the next: by then its reader has run, and the step may overwrite the activation.
        """
        return [node for visit in reversed([*self._visits, self._steps]) for node in visit]

    def add(self, source: PoolSource) -> PooledOutputs:
        """Pools a tensor over every axis but those of requests and channels."""
        self._visits.append([])
        tensor, axis, rank = source.tensor, source.layout.channels, source.rank
        how = source.quantization
        if how is not None:
            tensor = self._integers(tensor, how)
        elif source.elem_type != TensorProto.FLOAT:
            tensor = self._node("Cast", tensor, f"{tensor}:float", to=TensorProto.FLOAT)
        if source.layout.tokens:
            tensor, axis, rank = self._fold(tensor), 2, 3
        elif source.layout.requests != 0:
            order = [source.layout.requests, *(i for i in range(rank) if i != source.layout.requests)]
            tensor, axis = self._node("Transpose", tensor, f"{tensor}:requests", perm=order), order.index(axis)
        if source.layout.whole:
            one = self._constant(f"{tensor}:one_channel", [0, 1, -1])
            tensor, axis, rank = self._node("Reshape", tensor, f"{tensor}:whole", one), 1, 3
        if rank == 2:
            self.outputs.append(tensor if how is None else self._scaled(tensor, how))
            return PooledOutputs(self.outputs[-1], self.outputs[-1], None)
        over = [other for other in range(1, rank) if other != axis]
        mean = self._pooled("Average", tensor, f"{tensor}:mean", over, source.blocked)
        maximum = self._largest(tensor, source, over)
        if how is not None:
            mean, maximum = self._scaled(mean, how), self._scaled(maximum, how)
        early = len(self._visits[-1])
        step = self._node("HardSigmoid", tensor, f"{tensor}:positive", alpha=_POSITIVE_STEP, beta=0.0)
        fraction = self._pooled("Average", step, f"{tensor}:fraction", over, source.blocked)
        delayed, self._steps = self._steps, []
        if tensor == source.tensor:
            self._steps = self._visits[-1][early:]
            del self._visits[-1][early:]
        self._visits.append(delayed)
        self.outputs += [mean, maximum, fraction]
        return PooledOutputs(mean, maximum, fraction)

    def _integers(self, tensor: str, how: Quantization) -> str:
        """The integers less their zero point, in float."""
        one = self._constant(f"{tensor}:one", [1.0], TensorProto.FLOAT, scalar=True)
        zero_point = [how.zero_point_name] if how.zero_point_name else []
        domain = how.domain or None
        return self._node("DequantizeLinear", tensor, f"{tensor}:integers", one, *zero_point, domain=domain)

    def _scaled(self, tensor: str, how: Quantization) -> str:
        return self._node(
            "Mul", tensor, f"{tensor}:real", self._constant(f"{tensor}:scale", [how.scale], TensorProto.FLOAT)
        )

    def _fold(self, tensor: str) -> str:
        """(N * T, C) to (N, T, C), with N as it is at run time."""
        if self._requests_from is None:
            raise ValueError("tokens cannot be folded without a tensor that tells the number of requests")
        shape = self._node("Shape", self._requests_from, f"{tensor}:shape")
        first, rest = self._constant(f"{tensor}:first", [0]), self._constant(f"{tensor}:rest", [-1])
        requests = self._node("Gather", shape, f"{tensor}:n", first, axis=0)
        width = self._node("Gather", self._node("Shape", tensor, f"{tensor}:own"), f"{tensor}:c", rest, axis=0)
        target = self._node("Concat", requests, f"{tensor}:target", rest, width, axis=0)
        return self._node("Reshape", tensor, f"{tensor}:folded", target)

    def _pooled(self, what: str, source: str, name: str, over: list[int], blocked: int | None) -> str:
        """The average or maximum over axes; onnxruntime's pooling where these are all behind the second."""
        if over[0] == 1 or len(over) > _MOST_SPATIAL_AXES:
            return self._reduce("ReduceMean" if what == "Average" else "ReduceMax", source, name, over)
        if blocked is None:
            small = self._node(f"Global{what}Pool", source, f"{name}:pooled")
        else:
            small = self._node(f"Global{what}Pool", source, f"{name}:blocks", domain=BLOCKED)
            small = self._node("ReorderOutput", small, f"{name}:pooled", domain=BLOCKED, channels=blocked)
        return self._node("Flatten", small, name, axis=1)

    def _largest(self, tensor: str, source: PoolSource, over: list[int]) -> str:
        """The maximum. Over the steps of a sequence in two stages, the first over many channels side by side.

        onnxruntime takes a mean over the middle axis in one sweep, but a maximum channel by channel: on CPU the two
        stages take a sixth of its time (128 steps, 2048 channels).
        """
        name = f"{tensor}:maximum"
        if over != [1] or source.rank != 3 or source.layout.tokens or not source.steps or source.steps % _SIDE_BY_SIDE:
            return self._pooled("Max", tensor, name, over, source.blocked)
        wide = self._constant(f"{name}:wide", [0, source.steps // _SIDE_BY_SIDE, -1])
        narrow = self._constant(f"{name}:narrow", [0, _SIDE_BY_SIDE, -1])
        first = self._reduce("ReduceMax", self._node("Reshape", tensor, f"{name}:rows", wide), f"{name}:first", [1])
        return self._reduce("ReduceMax", self._node("Reshape", first, f"{name}:steps", narrow), name, [1])

    def _reduce(self, op: str, source: str, name: str, axes: list[int]) -> str:
        if self._opset < _AXES_ARE_INPUT:
            return self._node(op, source, name, axes=axes, keepdims=0)
        return self._node(op, source, name, self._constant(f"{name}:axes", axes), keepdims=0)

    def _constant(self, name: str, values: Sequence[float], kind: int = TensorProto.INT64, scalar: bool = False) -> str:
        full = self._full(name)
        self.initializers.append(helper.make_tensor(full, kind, [] if scalar else [len(values)], values))
        return full

    def _node(self, op: str, source: str, name: str, *more: str, domain: str | None = None, **attributes: Any) -> str:
        output = self._full(name)
        node = helper.make_node(op, [source, *more], [output], name=output, domain=domain, **attributes)
        self._visits[-1].append(node)
        return output

    def _full(self, name: str) -> str:
        return name if name.startswith(self._prefix) else f"{self._prefix}{name}"
