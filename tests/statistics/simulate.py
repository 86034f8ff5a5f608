"""Many independent channels drawn from a known null or alternative, and the rates at which the tests reject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from agent.summary import Summary, from_pooled
from detector.drift import Drift, drift

Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Values]
"""Pooled values (requests, channels)."""
CHUNK = 5_000


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a level was undercut."""

    level: float
    rejected: int
    trials: int

    @property
    def limit(self) -> int:
        """What a valid test exceeds once in ten thousand runs."""
        return int(binom.isf(1e-4, self.trials, self.level))

    def __str__(self) -> str:
        return f"{self.rejected / self.trials:.2e} at {self.level:g} (limit {self.limit / self.trials:.2e})"


def run(
    before: Draw, now: Draw, n_reference: int, n: int, channels: int, min_effect: float, seed: int = 0
) -> list[Drift]:
    """The drift test on ``channels`` independent channels, in chunks that fit into memory."""
    rng = np.random.default_rng(seed)
    return [
        drift(_summary(before(rng, n_reference, size)), _summary(now(rng, n, size)), min_effect)
        for size in [CHUNK] * (channels // CHUNK)
    ]


def rates(p_values: Values, levels: tuple[float, ...] = (0.05, 1e-3)) -> list[Rate]:
    """Rejections at each level."""
    return [Rate(level, int((p_values <= level).sum()), len(p_values)) for level in levels]


def gamma_hurdle(zeros: float, scale: float = 1.0) -> Draw:
    """Zero with a probability, else gamma distributed."""

    def draw(rng: np.random.Generator, n: int, channels: int) -> Values:
        values = scale * rng.standard_gamma(2.0, size=(n, channels))
        if zeros:
            values[rng.random((n, channels)) < zeros] = 0.0
        return values

    return draw


def heavy_tailed(rng: np.random.Generator, n: int, channels: int) -> Values:
    """Log-normal with a deviation of 2: a mean that single requests decide."""
    return np.exp(2 * rng.standard_normal((n, channels)))


def cells(probabilities: tuple[float, ...]) -> Draw:
    """One of a few well separated values, so that Cohen's omega between two such is known exactly."""
    values = 2.0 ** np.arange(len(probabilities))
    edges = np.cumsum(probabilities)[:-1]

    def draw(rng: np.random.Generator, n: int, channels: int) -> Values:
        return values[np.searchsorted(edges, rng.random((n, channels)), side="right")]

    return draw


def at_omega(omega: float, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Equal shares, and shares alternately above and below them by ``omega``."""
    equal = np.full(count, 1 / count)
    return tuple(equal), tuple(equal * (1 + omega * np.resize([1.0, -1.0], count)))


def _summary(values: Values) -> Summary:
    return from_pooled(values, values, np.sign(values))
