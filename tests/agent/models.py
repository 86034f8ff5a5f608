"""Tiny ONNX models for tests, He-initialised and seeded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Collects nodes and weights; every layer method takes and returns a tensor name."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.opset = opset

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **attributes))  # type: ignore[arg-type]
        return f"{name}_out"

    def weight(self, name: str, *shape: int, fan_in: int = 1) -> str:
        values = self.rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, name: str, cin: int, cout: int, kernel: int = 3, stride: int = 1, *, groups: int = 1) -> str:
        fan_in = cin // groups * kernel * kernel
        weight = self.weight(f"{name}_w", cout, cin // groups, kernel, kernel, fan_in=fan_in)
        bias = self.weight(f"{name}_b", cout, fan_in=200)
        pad = kernel // 2
        return self.node("Conv", [x, weight, bias], name, strides=[stride] * 2, pads=[pad] * 4, group=groups)

    def gemm(self, x: str, name: str, cin: int, cout: int) -> str:
        return self.node(
            "Gemm", [x, self.weight(f"{name}_w", cin, cout, fan_in=cin), self.weight(f"{name}_b", cout)], name
        )

    def model(self, inputs: dict[str, Sequence[int | str]], outputs: dict[str, int]) -> onnx.ModelProto:
        """Outputs are given as tensor -> rank."""
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name, rank in outputs.items()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def small_cnn(opset: int = 17) -> onnx.ModelProto:
    """Conv 1→4, Relu, Conv 4→6, Relu, pool, Gemm → 5, Relu, Gemm → 3; input (N, 1, 8, 8)."""
    b = Builder(opset=opset)
    x = b.node("Relu", [b.conv("image", "conv1", 1, 4)], "relu1")
    x = b.node("Relu", [b.conv(x, "conv2", 4, 6)], "relu2")
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    x = b.node("Relu", [b.gemm(x, "fc1", 6, 5)], "relu3")
    return b.model({"image": ["N", 1, 8, 8]}, {b.gemm(x, "fc2", 5, 3): 2})


def sequence_block(opset: int = 17) -> onnx.ModelProto:
    """MatMul 8→12, Relu, MatMul 12→8 over (N, T, 8)."""
    b = Builder(opset=opset)
    x = b.node("Relu", [b.node("MatMul", ["tokens", b.weight("w1", 8, 12, fan_in=8)], "up")], "relu1")
    x = b.node("MatMul", [x, b.weight("w2", 12, 8, fan_in=12)], "down")
    return b.model({"tokens": ["N", "T", 8]}, {x: 3})


def resnet50(seed: int = 0, size: int = 224) -> onnx.ModelProto:
    """The ResNet-50 graph (He et al. 2016), batch normalisation folded, He-initialised; input (N, 3, size, size)."""
    b = Builder(seed)
    x = b.node("Relu", [b.conv("image", "stem", 3, 64, 7, 2)], "stem_relu")
    x = b.node("MaxPool", [x], "stem_pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    cin = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            at, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            y = b.node("Relu", [b.conv(x, f"{at}_c1", cin, width, 1)], f"{at}_relu1")
            y = b.node("Relu", [b.conv(y, f"{at}_c2", width, width, 3, stride)], f"{at}_relu2")
            y = b.conv(y, f"{at}_c3", width, width * 4, 1)
            skip = b.conv(x, f"{at}_skip", cin, width * 4, 1, stride) if not block else x
            x = b.node("Relu", [b.node("Add", [y, skip], f"{at}_add")], f"{at}_relu3")
            cin = width * 4
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    return b.model({"image": ["N", 3, size, size]}, {b.gemm(x, "fc", 2048, 1000): 2})
