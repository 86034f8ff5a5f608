"""A small ReLU network on scikit-learn's handwritten digits: trained in numpy, exported to ONNX, and broken on purpose.

Plain numpy, so that the demo needs no training framework; every gradient is written out below. The network:

    image (N,1,8,8) - conv1 3x3 - relu - conv2 3x3 - relu - maxpool 2x2 - flatten - fc1 - relu - logits (N,10)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

Array = npt.NDArray[np.floating[Any]]
"""float32 throughout; the gradient test runs in float64."""
Weights = dict[str, Array]
"""A `.weight` and a `.bias` for each layer of `SHAPES`."""

CONV1, CONV2, HIDDEN, CLASSES, SIDE = 8, 16, 32, 10, 8
SHAPES: dict[str, tuple[int, ...]] = {
    "conv1": (CONV1, 1, 3, 3),
    "conv2": (CONV2, CONV1, 3, 3),
    "fc1": (CONV2 * (SIDE // 2) ** 2, HIDDEN),
    "logits": (HIDDEN, CLASSES),
}


@dataclass(frozen=True, slots=True)
class Digits:
    """The 1797 real pictures, as float32 (N,1,8,8) in [0, 1], with a quarter held out."""

    train: Array
    train_labels: npt.NDArray[np.int64]
    held_out: Array
    held_out_labels: npt.NDArray[np.int64]


def load(seed: int = 0) -> Digits:
    """Shuffle by `seed` and split three to one."""
    pictures, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    scaled = (pictures[order] / 16).astype(np.float32).reshape(-1, 1, SIDE, SIDE)
    names = labels[order].astype(np.int64)
    cut = len(names) * 3 // 4
    return Digits(scaled[:cut], names[:cut], scaled[cut:], names[cut:])


def initial(pictures: Array, seed: int = 0) -> Weights:
    """Random weights, scaled layer by layer: each channel's pre-activation on `pictures` has mean 0.1 and deviation 1.

    Data-dependent initialisation (Salimans, Kingma 2016). Without it a quarter of fc1 dies while training: what a
    rectifier feeds on is positive on average, and a unit that sums it below zero never wakes.
    """
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for layer, shape in SHAPES.items():
        weights[f"{layer}.weight"] = rng.standard_normal(shape).astype(np.float32)
        weights[f"{layer}.bias"] = np.zeros(shape[0] if len(shape) == 4 else shape[1], np.float32)
    for layer, shape in SHAPES.items():
        out = forward(weights, pictures)[layer]
        axes = (0, 2, 3) if out.ndim == 4 else (0,)
        mean, scale = out.mean(axis=axes), 1 / out.std(axis=axes)
        weights[f"{layer}.weight"] *= scale.reshape(-1, 1, 1, 1) if len(shape) == 4 else scale
        weights[f"{layer}.bias"] = (0.1 - mean * scale).astype(np.float32)
    weights["logits.weight"] *= 0.1  # no opinion yet: confident wrong answers would silence fc1 in the first steps
    return weights


def _columns(x: Array) -> Array:
    """im2col for 3x3, padding 1: (N,C,H,W) -> (N*H*W, C*9)."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.ascontiguousarray(patches.transpose(0, 2, 3, 1, 4, 5)).reshape(n * h * w, c * 9)


def _convolve(columns: Array, weight: Array, bias: Array, n: int) -> Array:
    out = columns @ weight.reshape(len(weight), -1).T + bias
    return out.reshape(n, SIDE, SIDE, -1).transpose(0, 3, 1, 2)


def _input_gradient(gradient: Array, weight: Array) -> Array:
    """The gradient of a 3x3 convolution's input: the same convolution with flipped, transposed kernels."""
    flipped = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return _convolve(_columns(gradient), flipped, np.zeros(len(flipped), np.float32), len(gradient))


def _unpool(x: Array) -> Array:
    return x.repeat(2, axis=2).repeat(2, axis=3)


def forward(weights: Weights, x: Array) -> dict[str, Array]:
    """Every tensor of the network for pictures (N,1,8,8), by name; `logits` is the answer."""
    n = len(x)
    t: dict[str, Array] = {"columns1": _columns(x)}
    t["conv1"] = _convolve(t["columns1"], weights["conv1.weight"], weights["conv1.bias"], n)
    t["conv1_relu"] = np.maximum(t["conv1"], 0)
    t["columns2"] = _columns(t["conv1_relu"])
    t["conv2"] = _convolve(t["columns2"], weights["conv2.weight"], weights["conv2.bias"], n)
    t["conv2_relu"] = np.maximum(t["conv2"], 0)
    half = SIDE // 2
    t["pool"] = t["conv2_relu"].reshape(n, CONV2, half, 2, half, 2).max(axis=(3, 5))
    t["flat"] = t["pool"].reshape(n, -1)
    t["fc1"] = t["flat"] @ weights["fc1.weight"] + weights["fc1.bias"]
    t["fc1_relu"] = np.maximum(t["fc1"], 0)
    t["logits"] = t["fc1_relu"] @ weights["logits.weight"] + weights["logits.bias"]
    return t


def gradients(weights: Weights, x: Array, labels: npt.NDArray[np.int64]) -> Weights:
    """Gradients of the mean cross-entropy."""
    n, t = len(x), forward(weights, x)
    odds = np.exp(t["logits"] - t["logits"].max(axis=1, keepdims=True))
    d_logits = odds / odds.sum(axis=1, keepdims=True)
    d_logits[np.arange(n), labels] -= 1
    d_logits /= n
    d_fc1 = (d_logits @ weights["logits.weight"].T) * (t["fc1_relu"] > 0)
    d_pool = (d_fc1 @ weights["fc1.weight"].T).reshape(t["pool"].shape)
    # The pixels that were the maximum share its gradient: a picture's blank border makes many ties.
    was_max = (t["conv2_relu"] == _unpool(t["pool"])).astype(np.float32)
    ties = was_max.reshape(n, CONV2, SIDE // 2, 2, SIDE // 2, 2).sum(axis=(3, 5))
    d_conv2 = was_max * _unpool(d_pool / ties) * (t["conv2_relu"] > 0)
    d_conv1 = _input_gradient(d_conv2, weights["conv2.weight"]) * (t["conv1_relu"] > 0)
    by_pixel1 = d_conv1.transpose(1, 0, 2, 3).reshape(CONV1, -1)
    by_pixel2 = d_conv2.transpose(1, 0, 2, 3).reshape(CONV2, -1)
    return {
        "conv1.weight": (by_pixel1 @ t["columns1"]).reshape(weights["conv1.weight"].shape),
        "conv1.bias": by_pixel1.sum(axis=1),
        "conv2.weight": (by_pixel2 @ t["columns2"]).reshape(weights["conv2.weight"].shape),
        "conv2.bias": by_pixel2.sum(axis=1),
        "fc1.weight": t["flat"].T @ d_fc1,
        "fc1.bias": d_fc1.sum(axis=0),
        "logits.weight": t["fc1_relu"].T @ d_logits,
        "logits.bias": d_logits.sum(axis=0),
    }


def train(digits: Digits, seed: int = 0, epochs: int = 12, batch: int = 32, rate: float = 2e-3) -> Weights:
    """Adam (Kingma, Ba 2015) with its usual constants; the rate rises during the first fifth, then falls to nothing."""
    rng, weights = np.random.default_rng(seed), initial(digits.train[:256], seed)
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    orders = (rng.permutation(len(digits.train)) for _ in range(epochs))
    steps = epochs * (len(digits.train) // batch)
    batches = (order[i : i + batch] for order in orders for i in range(0, len(order) - batch + 1, batch))
    with threadpool_limits(1):  # the matrices are small: more threads would only wait for each other
        for step, chosen in enumerate(batches, start=1):
            now = rate * min(4 * step / steps, 1.25 * (1 - step / steps))
            for name, gradient in gradients(weights, digits.train[chosen], digits.train_labels[chosen]).items():
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                mean, variance = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
                weights[name] = (weights[name] - now * mean / (np.sqrt(variance) + 1e-8)).astype(np.float32)
    return weights


def accuracy(weights: Weights, pictures: Array, labels: npt.NDArray[np.int64]) -> float:
    """The share of pictures whose largest logit is the label's."""
    return float((forward(weights, pictures)["logits"].argmax(axis=1) == labels).mean())


def with_dead_channels(weights: Weights, bias: float = -1000.0) -> tuple[Weights, tuple[int, ...]]:
    """What a broken export does: every second channel of conv2 gets a bias that no picture can lift above zero.

    Returns new weights, equal to the old but for those biases, and the channels concerned.
    """
    channels = tuple(range(0, CONV2, 2))
    broken = {name: value.copy() for name, value in weights.items()}
    broken["conv2.bias"][list(channels)] = bias
    return broken, channels


def to_onnx(weights: Weights) -> onnx.ModelProto:
    """The network as an ONNX model: input `image`, output `logits`, nodes named after their layers."""
    conv: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "conv1.weight", "conv1.bias"], ["conv1_out"], name="conv1", **conv),
        helper.make_node("Relu", ["conv1_out"], ["conv1_relu_out"], name="conv1_relu"),
        helper.make_node("Conv", ["conv1_relu_out", "conv2.weight", "conv2.bias"], ["conv2_out"], name="conv2", **conv),
        helper.make_node("Relu", ["conv2_out"], ["conv2_relu_out"], name="conv2_relu"),
        helper.make_node("MaxPool", ["conv2_relu_out"], ["pool_out"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool_out"], ["flat"], name="flatten", axis=1),
        helper.make_node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["fc1_out"], name="fc1"),
        helper.make_node("Relu", ["fc1_out"], ["fc1_relu_out"], name="fc1_relu"),
        helper.make_node("Gemm", ["fc1_relu_out", "logits.weight", "logits.bias"], ["logits"], name="logits_gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="reluscope-demo")
    model.ir_version = 8  # what a runtime of opset 17's time reads; newer ones read it too
    onnx.checker.check_model(model)
    return model


def deploy(model: onnx.ModelProto, repository: Path, name: str, version: int) -> Path:
    """Write `<repository>/<name>/<version>/model.onnx`; the version's folder appears complete or not at all."""
    final = repository / name / str(version)
    staging = repository / name / f".{version}.incoming"
    staging.mkdir(parents=True)
    onnx.save_model(model, staging / "model.onnx")
    staging.rename(final)
    return final / "model.onnx"
