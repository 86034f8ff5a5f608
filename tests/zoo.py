"""Architectures that are really served, for benchmarks: He-initialised, seeded, batch normalisation folded.

The weights are random, so that a model of any size is made in seconds and nothing is downloaded: what a graph costs
does not depend on the values of its weights. The batch axis is free.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from tests.agent.models import Builder, resnet50

_VGG19 = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
# Expansion, output channels, blocks, stride of the first: table 2 of the paper.
_MOBILENETV2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _FastBuilder(Builder):
    """Draws weights as float32 in place: the 144 million of VGG-19 take a second, not ten, and half the memory."""

    def weight(self, name: str, *shape: int, fan_in: int = 1) -> str:
        values = np.empty(shape, np.float32)
        self.rng.standard_normal(dtype=np.float32, out=values)
        values *= np.float32(np.sqrt(2 / fan_in))
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def scalar(self, name: str, value: float) -> str:
        self.weights.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name


def vgg19(seed: int = 0) -> onnx.ModelProto:
    """VGG-19 (Simonyan and Zisserman 2015) with its three dense layers; input (N, 3, 224, 224)."""
    b = _FastBuilder(seed)
    x, cin = "image", 3
    for stage, (layers, width) in enumerate(_VGG19):
        for layer in range(layers):
            at = f"s{stage}c{layer}"
            x = b.node("Relu", [b.conv(x, at, cin, width)], f"{at}_relu")
            cin = width
        x = b.node("MaxPool", [x], f"s{stage}_pool", kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("Flatten", [x], "flat")
    x = b.node("Relu", [b.gemm(x, "fc1", 512 * 7 * 7, 4096)], "fc1_relu")
    x = b.node("Relu", [b.gemm(x, "fc2", 4096, 4096)], "fc2_relu")
    return b.model({"image": ["N", 3, 224, 224]}, {b.gemm(x, "fc3", 4096, 1000): 2})


def mobilenet(seed: int = 0) -> onnx.ModelProto:
    """MobileNetV2 (Sandler et al. 2018): inverted residuals, ReLU6 as Clip; input (N, 3, 224, 224)."""
    b = _FastBuilder(seed)
    bounds = [b.scalar("zero", 0), b.scalar("six", 6)]

    def conv_relu6(x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        y = b.conv(x, name, cin, cout, kernel, stride, groups=groups)
        return b.node("Clip", [y, *bounds], f"{name}_relu6")

    x, cin = conv_relu6("image", "stem", 3, 32, 3, 2), 32
    for stage, (expansion, cout, blocks, first_stride) in enumerate(_MOBILENETV2):
        for block in range(blocks):
            at, stride, wide = f"s{stage}b{block}", first_stride if not block else 1, cin * expansion
            y = conv_relu6(x, f"{at}_expand", cin, wide, 1) if expansion > 1 else x
            y = conv_relu6(y, f"{at}_depthwise", wide, wide, 3, stride, groups=wide)
            y = b.conv(y, f"{at}_project", wide, cout, 1)
            x = b.node("Add", [x, y], f"{at}_add") if stride == 1 and cin == cout else y
            cin = cout
    x = conv_relu6(x, "head", cin, 1280, 1)
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    return b.model({"image": ["N", 3, 224, 224]}, {b.gemm(x, "fc", 1280, 1000): 2})


def mlp(seed: int = 0) -> onnx.ModelProto:
    """Dense 784 → 2048 → 2048 → 1024 → 10 with ReLU; input (N, 784)."""
    b = _FastBuilder(seed)
    x, widths = "features", (784, 2048, 2048, 1024)
    for layer, (cin, cout) in enumerate(itertools.pairwise(widths)):
        x = b.node("Relu", [b.gemm(x, f"fc{layer}", cin, cout)], f"relu{layer}")
    return b.model({"features": ["N", widths[0]]}, {b.gemm(x, "head", widths[-1], 10): 2})


def transformer(
    seed: int = 0, *, layers: int = 6, tokens: int = 128, width: int = 512, activation: str = "Relu"
) -> onnx.ModelProto:
    """The feed-forward halves of a transformer encoder, the base size of Vaswani et al. 2017, normalised before.

    LayerNormalization, MatMul to 4 x ``width``, ``activation`` (Relu as in the paper, or Gelu), MatMul, residual; input
    (N, tokens, width).
    """
    b = _FastBuilder(seed, opset=20)  # Gelu is an ONNX operator from 20 on
    x, inner = "tokens", 4 * width
    b.weights.append(numpy_helper.from_array(np.ones(width, np.float32), "norm_scale"))
    for layer in range(layers):
        at = f"l{layer}"
        y = b.node("LayerNormalization", [x, "norm_scale"], f"{at}_norm")
        y = b.node("MatMul", [y, b.weight(f"{at}_up_w", width, inner, fan_in=width)], f"{at}_up")
        y = b.node("Add", [y, b.weight(f"{at}_up_b", inner, fan_in=200)], f"{at}_up_bias")
        y = b.node(activation, [y], f"{at}_{activation.lower()}")
        y = b.node("MatMul", [y, b.weight(f"{at}_down_w", inner, width, fan_in=inner)], f"{at}_down")
        y = b.node("Add", [y, b.weight(f"{at}_down_b", width, fan_in=200)], f"{at}_down_bias")
        x = b.node("Add", [x, y], f"{at}_residual")
    return b.model({"tokens": ["N", tokens, width]}, {x: 3})


ZOO: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": resnet50,
    "vgg19": vgg19,
    "mobilenet": mobilenet,
    "mlp": mlp,
    "transformer": transformer,
}
"""Every architecture by its name on the command line."""
