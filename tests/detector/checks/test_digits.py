"""Checks on a real network and real pictures: silent while healthy, and right about the cause when not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.paired.kinship_sums import layer_sums, sampled
from agent.summary import Summary, from_pooled
from agent.wire import LayerKinship
from deploy.demo import cnn
from detector.checks.check import CheckSettings, run_check
from detector.domain.finding import Check
from tests.detector.fakes import START, WINDOW, FakeStore, probe

Pictures = NDArray[np.float32]
LAYERS = {"image": 0, "conv1_relu": 1, "conv2_relu": 2, "fc1_relu": 3, "logits": 4}
PROBES = [
    probe("image", 0, 1, "input"),
    probe("conv1_relu", 1, cnn.CONV1),
    probe("conv2_relu", 2, cnn.CONV2),
    probe("fc1_relu", 3, cnn.HIDDEN),
    probe("logits", 4, cnn.CLASSES, "output"),
]
SETTINGS = CheckSettings(min_requests=300, reference_requests=800, reference_windows=1)


@cache
def _network() -> tuple[cnn.Digits, cnn.Weights]:
    digits = cnn.load()
    return digits, cnn.train(digits, epochs=3)


def _window(
    weights: cnn.Weights, rng: np.random.Generator, change: Callable[[Pictures], Pictures], n: int = 350
) -> dict[str, Summary]:
    digits, _ = _network()
    pictures = change(digits.held_out[rng.integers(len(digits.held_out), size=n)])
    tensors = {"image": pictures, **cnn.forward(weights, pictures)}
    return {name: _pooled(tensors[name]) for name in LAYERS}


def _kinship(former: cnn.Weights, served: cnn.Weights, rng: np.random.Generator) -> dict[str, LayerKinship]:
    """As agents measure it after a deployment, on a hundred pictures."""
    digits, _ = _network()
    pictures = digits.held_out[rng.integers(len(digits.held_out), size=100)]
    new, old = cnn.forward(served, pictures), cnn.forward(former, pictures)
    found = {}
    for layer in ("conv1_relu", "conv2_relu", "fc1_relu"):
        means = [sampled(side[layer].reshape(100, side[layer].shape[1], -1).mean(axis=2)) for side in (new, old)]
        if (one := layer_sums(layer, *means)) is not None:
            found[layer] = one
    return found


def _pooled(tensor: Pictures) -> Summary:
    positions = tensor.reshape(len(tensor), tensor.shape[1], -1)
    return from_pooled(positions.mean(axis=2), positions.max(axis=2), (positions > 0).mean(axis=2))


def _play(
    seed: int, weights: cnn.Weights, change: Callable[[Pictures], Pictures], windows: int, new_version: bool = False
) -> list[Check]:
    """Three healthy windows make the reference; then one check per window of the traffic to be judged."""
    rng = np.random.default_rng(seed)
    _, healthy = _network()
    store = FakeStore()
    version = store.add_version("1", PROBES)
    for i in range(3):
        store.add_window(version, _window(healthy, rng, _same), START + i * WINDOW)
    if new_version:
        former, version = version, store.add_version("2", PROBES, START + 3 * WINDOW)
        store.kinships[version.id, former.digest] = _kinship(healthy, weights, rng)
    checks = []
    for i in range(3, 3 + windows):
        store.add_window(version, _window(weights, rng, change), START + i * WINDOW)
        checks.append(run_check(store, version, SETTINGS, START + (i + 1) * WINDOW + timedelta(seconds=10)))
    return checks


def _same(pictures: Pictures) -> Pictures:
    return pictures


def _translated(pictures: Pictures) -> Pictures:
    moved = np.zeros_like(pictures)
    moved[..., 2:, :] = pictures[..., :-2, :]
    return moved


@pytest.mark.parametrize("seed", range(5))
def test_healthy_traffic_is_silent(seed: int) -> None:
    checks = _play(seed, _network()[1], _same, windows=10)
    assert [check.status for check in checks] == ["ok"] * 10, [f.summary for c in checks for f in c.findings]
    assert all(check.n == 350 and set(check.layers) == set(LAYERS) for check in checks)


@pytest.mark.parametrize(
    "change",
    [lambda x: 0.5 * x, lambda x: 1 - x, lambda x: x + np.float32(0.2), _translated],
    ids=["darkened", "inverted", "brighter", "moved"],
)
def test_changed_pictures_are_an_input_shift(change: Callable[[Pictures], Pictures]) -> None:
    (check,) = _play(0, _network()[1], change, windows=1)
    assert check.status == "findings"
    assert {finding.cause for finding in check.findings} == {"input_shift"}
    assert {finding.alert for finding in check.findings} == {"ReluscopeInputShift"}
    assert [finding.layer for finding in check.findings if finding.origin] == ["image"]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_model_trained_from_scratch_is_compared_with_itself_and_silent(seed: int) -> None:
    checks = _play(seed, cnn.train(_network()[0], seed=seed, epochs=3), _same, windows=9, new_version=True)
    assert not any(check.findings for check in checks), [f.summary for c in checks for f in c.findings]
    assert [check.status for check in checks] == ["no_reference"] * 2 + ["too_few_requests"] + ["ok"] * 6
    assert "of its own; is it near version 1? far: channels correlate by" in checks[0].note


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1"])
def test_a_version_with_dead_neurons_anywhere_is_still_near_the_former_one(layer: str, share: float) -> None:
    _, healthy = _network()
    broken = {name: value.copy() for name, value in healthy.items()}
    biases = broken[f"{layer}.bias"]
    biases[: round(share * len(biases))] = -1000.0
    check = _play(4, broken, _same, windows=1, new_version=True)[0]
    dead = [finding for finding in check.findings if finding.test == "dead"]
    assert f"{layer}_relu" in {finding.layer for finding in dead}, check.note


@pytest.mark.parametrize("new_version", [False, True])
def test_a_strongly_negative_bias_is_found_as_dead_neurons_where_it_is(new_version: bool) -> None:
    broken, channels = cnn.with_dead_channels(_network()[1])
    check = _play(1, broken, _same, windows=1, new_version=new_version)[0]
    dead = [finding for finding in check.findings if finding.test == "dead"]
    assert dead[0].layer == "conv2_relu"
    assert (dead[0].cause, dead[0].alert, dead[0].origin) == ("dead_neurons", "ReluscopeDeadNeurons", True)
    assert set(dead[0].channels) <= set(channels)
    assert len(dead[0].channels) >= len(channels) - 1  # one may have been silent all along
    assert check.layers["conv2_relu"]["newly_dead"] == len(dead[0].channels)
    assert {finding.layer for finding in check.findings if finding.origin} == {"conv2_relu"}
    assert {finding.cause for finding in check.findings} == {"dead_neurons"}
    assert not any(finding.kind == "input" or finding.layer == "conv1_relu" for finding in check.findings)


def test_changed_weights_are_a_model_change() -> None:
    changed = {name: value.copy() for name, value in _network()[1].items()}
    changed["conv2.weight"] *= 1.5
    check = _play(2, changed, _same, windows=1, new_version=True)[0]
    assert {finding.cause for finding in check.findings} == {"model_change"}
    assert {finding.alert for finding in check.findings} == {"ReluscopeActivationDrift"}
    assert {finding.layer for finding in check.findings if finding.origin} == {"conv2_relu"}


def test_exploding_weights_are_an_explosion() -> None:
    changed = {name: value.copy() for name, value in _network()[1].items()}
    changed["conv1.weight"] *= 100
    check = _play(3, changed, _same, windows=1, new_version=True)[0]
    first = check.findings[0]
    assert (first.layer, first.test, first.cause, first.severity) == (
        "conv1_relu", "explosion", "activation_explosion", "critical"
    )  # fmt: skip
    assert first.origin
    assert first.effect > 10
