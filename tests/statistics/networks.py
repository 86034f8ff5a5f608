"""Populations from real networks: pooled values of real pictures, as the agent captures them.

The demo's network is trained on scikit-learn's digits. The reference architectures of the onnx package come without
their weights, which ConstantOfShape stands in for; they get random ones by He et al. (2015), so that half of the
rectifiers' inputs are positive, and look at random crops of scikit-image's sample pictures.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from skimage import data, transform

from agent.instrument import instrument
from agent.instrument.pooled import Pooled
from agent.replay import Replayer
from agent.wire import Probe
from tests.statistics.digits import camera
from tests.statistics.populations import Population

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
PICTURES = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "moon")
SIDE = 224
CROPS = 400
LAYERS = 4
"""Activations that are kept of a large network, spread over its depth, with its input and output."""


def network(name: str, rng: np.random.Generator) -> Population:
    """Of "digits", or a light model of the onnx package; made once, and the same in every life but for its classes."""
    probes, layers = _digits() if name == "digits" else _light(name)
    size = len(next(iter(layers.values())).mean)
    return Population(probes, layers, (rng.random(size) < 0.5).astype(np.int64))


@cache
def _digits() -> tuple[tuple[Probe, ...], dict[str, Pooled]]:
    view = camera()
    pictures = np.concatenate([view.digits.train, view.digits.held_out])
    return view.probes, view.pooled(pictures)


@cache
def _light(name: str) -> tuple[tuple[Probe, ...], dict[str, Pooled]]:
    instrumented = instrument(_with_weights(onnx.load(LIGHT / f"light_{name}.onnx")))
    kept = _spread(instrumented.probes)
    replayer = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 28, provider="cpu")
    (given,) = (probe.name for probe in instrumented.probes if probe.kind == "input")
    found = [replayer.run({given: picture[None]}) for picture in _crops(CROPS)]
    layers = {
        probe.name: Pooled(
            *(
                np.concatenate([getattr(one[probe.name], part) for one in found])
                for part in ("mean", "maximum", "fraction")
            )
        )
        for probe in kept
    }
    return kept, layers


def _spread(probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """The input, the output and some activations between."""
    inside = [probe for probe in probes if probe.kind == "activation"]
    places = np.linspace(0, len(inside) - 1, min(LAYERS, len(inside))).astype(int)
    chosen = {inside[place].name for place in places}
    return tuple(probe for probe in probes if probe.kind != "activation" or probe.name in chosen)


def _with_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Random weights in the place of constant ones; initializers are no longer inputs, as they were in old models."""
    rng = np.random.default_rng(seed)
    shapes = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(int(extent) for extent in shapes[node.input[0]])
        weights = _random(rng, shape)
        model.graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    given = [one for one in model.graph.input if one.name not in shapes]
    del model.graph.input[:]
    model.graph.input.extend(given)
    model.ir_version = 8
    return model


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if len(shape) < 2:  # a bias
        return np.asarray(0.1 * rng.standard_normal(shape), np.float32)
    return np.asarray(rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])), np.float32)


def _crops(count: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """Square crops of all sizes from the sample pictures, turned and mirrored; (3, `SIDE`, `SIDE`), centred on 0."""
    rng = np.random.default_rng(seed)
    pictures = [_colour(getattr(data, name)()) for name in PICTURES]
    crops = []
    for _ in range(count):
        picture = pictures[int(rng.integers(len(pictures)))]
        side = int(rng.integers(48, min(picture.shape[:2]) + 1))
        top, left = (int(rng.integers(extent - side + 1)) for extent in picture.shape[:2])
        crop = np.rot90(picture[top : top + side, left : left + side], int(rng.integers(4)))
        small = transform.resize(crop[:, :: rng.choice([-1, 1])], (SIDE, SIDE), anti_aliasing=True)  # type: ignore[no-untyped-call]
        crops.append(np.asarray(2 * small.transpose(2, 0, 1) - 1, np.float32))
    return crops


def _colour(picture: NDArray[np.generic]) -> NDArray[np.float64]:
    values = np.asarray(picture, np.float64) / 255
    return np.repeat(values[:, :, None], 3, axis=2) if values.ndim == 2 else values[:, :, :3]
