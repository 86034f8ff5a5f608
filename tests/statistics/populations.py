"""Populations of requests that no test was built for: what a network makes of each, by layer, from laws drawn anew.

A population is a finite set of requests; the traffic draws from it with replacement, so its empirical law is the null,
exactly, with whatever holds between channels and layers. Nothing here knows what the tests look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.instrument.pooled import Pooled
from agent.summary.histogram import Floats
from agent.wire import Probe

REQUESTS = 3000
"""Of a population: an exception of one request in five hundred is six of them."""
CHANNELS = 24
Rng = np.random.Generator
Classes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Population:
    """Requests and what each layer makes of them."""

    probes: tuple[Probe, ...]
    layers: Mapping[str, Pooled]
    """By probe; arrays of shape (requests, channels)."""
    classes: Classes
    """By request, from 0 on: kinds of requests whose mix a mood, a block or the hour may change."""

    @property
    def size(self) -> int:
        return len(self.classes)


Channels = Callable[[Rng, int, int], tuple[Floats, Floats]]
"""From so many requests and channels: active fractions and strengths of what is active, shape (requests, channels)."""


def rare_off(rng: Rng, n: int, channels: int) -> tuple[Floats, Floats]:
    """On almost everywhere, and wholly or nearly off in .2 to 3 % of requests."""
    fraction = 1 - rng.gamma(0.3, 0.002, (n, channels))
    off = rng.random((n, channels)) < _between(rng, 0.002, 0.03, channels)
    rest = rng.choice([0.0, 0.15], channels) * rng.random((n, channels))
    return np.where(off, rest, fraction), _gamma(rng, n, channels)


def rare_on(rng: Rng, n: int, channels: int) -> tuple[Floats, Floats]:
    """Silent or nearly so, and on in .2 to 5 % of requests."""
    quiet = np.where(rng.random(channels) < 0.5, 0.0, 0.02) * rng.random((n, channels))
    on = rng.random((n, channels)) < _between(rng, 0.002, 0.05, channels)
    return np.where(on, rng.uniform(0.3, 1, channels), quiet), _gamma(rng, n, channels)


def ends(rng: Rng, n: int, channels: int) -> tuple[Floats, Floats]:
    """All or nothing, with a few requests between."""
    share = rng.random(channels)
    fraction = (rng.random((n, channels)) < share).astype(np.float64)
    between = rng.random((n, channels)) < _between(rng, 0.001, 0.1, channels)
    return np.where(between, rng.random((n, channels)), fraction), _gamma(rng, n, channels)


def few(rng: Rng, n: int, channels: int) -> tuple[Floats, Floats]:
    """Two to five distinct values, some of them rare."""
    fraction, strength = np.empty((n, channels)), np.empty((n, channels))
    for channel in range(channels):
        count = int(rng.integers(2, 6))
        shares = 10 ** rng.uniform(-2.7, 0, count)
        which = rng.choice(count, n, p=shares / shares.sum())
        fraction[:, channel] = np.round(rng.random(count), 1)[which]
        strength[:, channel] = rng.gamma(2.0, size=count)[which]
    return fraction, strength


def clipped(rng: Rng, n: int, channels: int) -> tuple[Floats, Floats]:
    """Saturated: every position at the activation's ceiling of six in most requests."""
    strength = np.minimum(rng.uniform(2, 6, channels) * rng.gamma(rng.uniform(1, 20, channels), 0.3, (n, channels)), 6)
    return np.clip(strength / 6 + 0.3, 0, 1), strength


def heavy(rng: Rng, n: int, channels: int) -> tuple[Floats, Floats]:
    """Log-normal fractions and strengths."""
    spread = rng.uniform(0.5, 2.5, channels)
    fraction = np.minimum(10 ** rng.uniform(-2.5, -0.5, channels) * np.exp(spread * rng.normal(size=(n, channels))), 1)
    return fraction, np.exp(rng.uniform(0.5, 1.5, channels) * rng.normal(size=(n, channels)))


def betas(rng: Rng, n: int, channels: int) -> tuple[Floats, Floats]:
    """Beta-distributed fractions, from U-shaped to narrow."""
    first, second = 10 ** rng.uniform(-1.5, 1.3, (2, channels))
    fraction = rng.beta(first, second, (n, channels))
    return np.where(fraction < 0.01, 0.0, fraction), _gamma(rng, n, channels)


LAWS: Mapping[str, Channels] = {
    "rare off": rare_off,
    "rare on": rare_on,
    "point masses at both ends": ends,
    "few distinct values": few,
    "saturation": clipped,
    "heavy tails": heavy,
    "betas": betas,
}


def plain(law: Channels, rng: Rng) -> Population:
    """Every channel of a law of its own, all of one family."""
    return _population(rng, lambda n, channels: law(rng, n, channels))


def copies(rng: Rng) -> Population:
    """Layers that are copies of one channel: perfectly correlated, of a random family."""
    law = _any(rng)

    def repeated(n: int, channels: int) -> tuple[Floats, Floats]:
        fraction, strength = law(rng, n, 1)
        return np.repeat(fraction, channels, axis=1), np.repeat(strength, channels, axis=1)

    return _population(rng, repeated)


def switching(rng: Rng) -> Population:
    """Some requests, such as blank pictures, switch every channel of every layer to another law."""
    odd = rng.random(REQUESTS) < 10 ** rng.uniform(-2.5, -0.7)
    return _population(rng, lambda n, channels: _switched(rng, odd, channels))


def anything(rng: Rng) -> Population:
    """Every channel of a family of its own, and a part of the requests switches some of the channels."""
    odd = rng.random(REQUESTS) < 10 ** rng.uniform(-2.5, -0.3)

    def mixed(n: int, channels: int) -> tuple[Floats, Floats]:
        fraction, strength = _columns(rng, n, channels)
        other = _columns(rng, n, channels)
        swapped = odd[:, None] & (rng.random(channels) < 0.3)
        return np.where(swapped, other[0], fraction), np.where(swapped, other[1], strength)

    return _population(rng, mixed)


def two_kinds(rng: Rng) -> Population:
    """Two kinds of requests, day's and night's say, half of each, that differ in some channels of every layer."""
    classes = (rng.random(REQUESTS) < 0.5).astype(np.int64)

    def mixed(n: int, channels: int) -> tuple[Floats, Floats]:
        fraction, strength = betas(rng, n, channels)
        factor = np.where(rng.random(channels) < 0.5, rng.uniform(0.6, 1.4, channels), 1.0)
        changed = np.where(classes[:, None] == 1, factor, 1.0)
        return np.clip(fraction * changed, 0, 1), strength * changed

    return _population(rng, mixed, classes)


def customers(rng: Rng, count: int = 40) -> Population:
    """So many customers: each activates some channels always and others never, the rest at a level of its own."""
    classes = rng.integers(count, size=REQUESTS)
    classes[:count] = np.arange(count)

    def mixed(n: int, channels: int) -> tuple[Floats, Floats]:
        fraction, strength = _columns(rng, n, channels)
        level = rng.gamma(2.0, 0.5, (count, channels))
        on = rng.random((count, channels)) < 0.7
        return np.where(on[classes], fraction * np.minimum(level[classes], 1), 0.0), strength * level[classes]

    return _population(rng, mixed, classes)


def _between(rng: Rng, low: float, high: float, channels: int) -> Floats:
    return np.asarray(np.exp(rng.uniform(np.log(low), np.log(high), channels)), np.float64)


def _gamma(rng: Rng, n: int, channels: int) -> Floats:
    return rng.gamma(rng.uniform(0.5, 10, channels), 1.0, (n, channels))


def _any(rng: Rng) -> Channels:
    return list(LAWS.values())[int(rng.integers(len(LAWS)))]


def _columns(rng: Rng, n: int, channels: int) -> tuple[Floats, Floats]:
    pairs = [_any(rng)(rng, n, 1) for _ in range(channels)]
    return np.hstack([fraction for fraction, _ in pairs]), np.hstack([strength for _, strength in pairs])


def _switched(rng: Rng, odd: NDArray[np.bool_], channels: int) -> tuple[Floats, Floats]:
    fraction, strength = betas(rng, len(odd), channels)
    level = rng.choice([0.0, 1.0, rng.random()], channels)  # all channels jump at once, each to a level of its own
    return np.where(odd[:, None], level, fraction), np.where(odd[:, None], rng.gamma(2.0, size=channels), strength)


def _population(
    rng: Rng, make: Callable[[int, int], tuple[Floats, Floats]], classes: Classes | None = None
) -> Population:
    """An input, a convolution, a dense rectifier and an output."""
    layers = {"image": _input(*make(REQUESTS, 3)), "conv": _conv(*make(REQUESTS, CHANNELS))}
    layers["dense"] = _dense(*make(REQUESTS, CHANNELS))
    layers["scores"] = _input(*make(REQUESTS, 10))
    probes = (
        Probe("image", "Input", "image", 3, 1, "input", 0, False),
        Probe("conv", "Relu", "conv", CHANNELS, 1, "activation", 1, True),
        Probe("dense", "Relu", "dense", CHANNELS, 1, "activation", 2, True),
        Probe("scores", "Output", "scores", 10, 1, "output", 3, False),
    )
    some = (rng.random(REQUESTS) < 0.5).astype(np.int64) if classes is None else classes
    return Population(probes, layers, some)


def _conv(fraction: Floats, strength: Floats) -> Pooled:
    active = np.where(fraction > 0, fraction * strength, 0.0)
    return Pooled(active, np.where(fraction > 0, strength * (2 + fraction), 0.0), fraction)


def _dense(fraction: Floats, strength: Floats) -> Pooled:
    value = np.where(fraction > 0.2, strength, 0.0)
    return Pooled(value, value, (value > 0).astype(np.float64))


def _input(fraction: Floats, strength: Floats) -> Pooled:
    value = np.asarray(fraction * strength, np.float64)
    return Pooled(value, value + strength, fraction)
