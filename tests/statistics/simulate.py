"""Many independent channels drawn from a known null or alternative, and the rates at which the tests reject.

The drift test sees counts per bucket only, so the counts are drawn themselves, from a multinomial with the
distribution's exact bucket probabilities: the same law as drawing values and counting them, at a hundredth of the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, gamma, lognorm

from agent.summary import Histogram, Summary, empty
from agent.summary.histogram import bucket_bounds, bucket_index
from detector.drift import Drift, drift

Floats = NDArray[np.float64]
CHUNK = 20_000


@dataclass(frozen=True, slots=True)
class Law:
    """A distribution over zero and consecutive buckets of positive values."""

    first: int
    """Index of the first bucket."""
    scale: int
    shares: Floats
    """Of zero, then of each bucket; sums to 1."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often p-values were at or below a level."""

    level: float
    rejected: int
    trials: int

    @property
    def limit(self) -> int:
        """What a valid test exceeds once in ten thousand runs."""
        return int(binom.isf(1e-4, self.trials, self.level))

    @property
    def valid(self) -> bool:
        """Whether the rate is within the limit or below."""
        return self.rejected <= self.limit

    def __str__(self) -> str:
        return f"{self.rejected / self.trials:.2e} at {self.level:g} (limit {self.limit / self.trials:.2e})"


def hurdle(zeros: float, values: str = "gamma", stretch: float = 1.0) -> Law:
    """Zero with a probability, else of a gamma or a heavy-tailed log-normal distribution, stretched by a factor."""
    positive = {"gamma": gamma(2.0), "heavy": lognorm(2.0)}[values]
    scale = 4 if values == "gamma" else 2
    ends = np.array([positive.ppf(1e-3), positive.ppf(1 - 1e-3)])  # the rest is cut off, for speed
    first, last = bucket_index(ends * stretch, scale)
    index = np.arange(first, last + 1, dtype=np.int64)
    lower, upper = bucket_bounds(index, scale)
    shares = np.diff(positive.cdf(np.append(lower, upper[-1]) / stretch))
    return Law(int(first), scale, np.concatenate([[zeros], (1 - zeros) * shares / shares.sum()]))


def cells(shares: Floats, zeros: float = 0.0) -> Law:
    """A few values of given shares; the test gives each a bin of its own, so Cohen's omega is known exactly."""
    return Law(0, 0, np.concatenate([[zeros], (1 - zeros) * np.asarray(shares)]))


def at_omega(omega: float, count: int, shape: str) -> Floats:
    """Shares at Cohen's omega from ``count`` equal ones: "alternating", or one of them "up" or "down"."""
    if shape == "alternating":
        change = np.resize([1.0, -1.0], count)
    else:
        change = np.full(count, -1 / (count - 1))
        change[count // 2] = 1.0
        change *= 1 if shape == "up" else -1
    change = change - change.mean()
    return np.asarray((1 + omega * change / np.sqrt((change**2).mean())) / count, np.float64)


def run(
    before: Law, now: Law, n_reference: int, n: int, min_effect: float, channels: int, seed: int = 0
) -> list[Drift]:
    """The drift test on ``channels`` independent channels, in chunks that fit into memory."""
    rng = np.random.default_rng(seed)
    return [
        drift(_draw(before, n_reference, size, rng), _draw(now, n, size, rng), min_effect)
        for size in [CHUNK] * (channels // CHUNK)
    ]


def rates(p_values: Floats, levels: tuple[float, ...] = (0.05, 1e-3)) -> list[Rate]:
    """Rejections at each level."""
    return [Rate(level, int((p_values <= level).sum()), len(p_values)) for level in levels]


def _draw(law: Law, n: int, channels: int, rng: np.random.Generator) -> Summary:
    counts = rng.multinomial(n, law.shares, size=channels)
    channel, column = np.nonzero(counts[:, 1:])
    histogram = Histogram(
        scale=law.scale,
        zeros=counts[:, 0].astype(np.int64),
        channel=channel.astype(np.int64),
        sign=np.ones(len(channel), np.int64),
        index=column.astype(np.int64) + law.first,
        count=counts[channel, column + 1].astype(np.int64),
    )
    return replace(empty(channels), n=n, mean_histogram=histogram)
