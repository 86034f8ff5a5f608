"""The nodes that reduce one tensor to pooled values of shape (requests, channels) inside the graph.

    Before              After
    Conv                Conv
     |                   |
    Relu                Relu ---> HardSigmoid(1e30, 0) -> GlobalAveragePool -> Flatten   share of positive elements
     |                   |  \\--> GlobalAveragePool -> Flatten                            mean
    ...                 ...  \\-> GlobalMaxPool -> Flatten                               maximum

These operators exist since opset 1 and stay inside onnxruntime's blocked NCHWc layout on CPU. A dense tensor (requests,
channels) is fetched as it is: each element is its own mean and maximum.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from agent.pooled import PooledOutputs

_POSITIVE_STEP = 1e30  # alpha of a HardSigmoid that is 1 for every float above 1e-30 and 0 at 0 and below
_AXES_ARE_INPUT = 18  # opset from which ReduceMean and ReduceMax take their axes as an input


class Pooling:
    """Collects the nodes, constants and outputs to be added to a model."""

    def __init__(self, opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.outputs: list[str] = []
        self._opset = opset

    def add(self, tensor: str, elem_type: int, rank: int, axis: int) -> PooledOutputs:
        """Pools ``tensor`` over every axis but the first (requests) and ``axis`` (channels)."""
        if elem_type != TensorProto.FLOAT:
            tensor = self._node("Cast", tensor, f"{tensor}:float", to=TensorProto.FLOAT)
        if rank == 2:
            self.outputs.append(tensor)
            return PooledOutputs(tensor, tensor, None)
        step = self._node("HardSigmoid", tensor, f"{tensor}:positive", alpha=_POSITIVE_STEP, beta=0.0)
        if axis == 1:
            pooled = [
                self._node("Flatten", self._node(op, source, f"{tensor}:{what}:pooled"), f"{tensor}:{what}", axis=1)
                for op, source, what in (
                    ("GlobalAveragePool", tensor, "mean"),
                    ("GlobalMaxPool", tensor, "maximum"),
                    ("GlobalAveragePool", step, "fraction"),
                )
            ]
        else:
            axes = [other for other in range(1, rank) if other != axis]
            pooled = [
                self._reduce("ReduceMean", tensor, f"{tensor}:mean", axes),
                self._reduce("ReduceMax", tensor, f"{tensor}:maximum", axes),
                self._reduce("ReduceMean", step, f"{tensor}:fraction", axes),
            ]
        self.outputs.extend(pooled)
        return PooledOutputs(pooled[0], pooled[1], pooled[2])

    def _reduce(self, op: str, source: str, name: str, axes: list[int]) -> str:
        if self._opset < _AXES_ARE_INPUT:
            return self._node(op, source, name, axes=axes, keepdims=0)
        constant = f"{_full(name)}:axes"
        self.initializers.append(helper.make_tensor(constant, TensorProto.INT64, [len(axes)], axes))
        return self._node(op, source, name, constant, keepdims=0)

    def _node(self, op: str, source: str, name: str, *more: str, **attributes: Any) -> str:
        output = _full(name)
        self.nodes.append(helper.make_node(op, [source, *more], [output], name=output, **attributes))
        return output


def _full(name: str) -> str:
    return name if name.startswith("reluscope:") else f"reluscope:{name}"
