"""Distributions of a channel's pooled value, over zero and a histogram's buckets.

The drift test sees counts per bucket only, so counts are drawn, from the distribution's exact bucket probabilities: the
same law as drawing values and counting them, at a hundredth of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import gamma, lognorm

from agent.summary.histogram import Floats, bucket_bounds, bucket_index

_POSITIVE = {"gamma": (gamma(2.0), 3), "heavy": (lognorm(2.0), 2)}
"""Distribution and histogram scale; 60 to 70 buckets each, many more than the tests have bins."""
COARSE = 1
"""A scale of some 15 buckets, for cases in which every channel has many windows."""


@dataclass(frozen=True, slots=True)
class Law:
    """A distribution over zero and consecutive buckets of positive values."""

    first: int
    """Index of the first bucket."""
    scale: int
    shares: Floats
    """Of zero, then of each bucket; sums to 1."""
    graded: bool = False
    """Whether a request activates a part of a channel's positions, as in convolutions: the more, the larger the value.
    Else all or none."""

    @property
    def fractions(self) -> Floats:
        """The active fraction of a request in each cell; most are small, which is hard on normal approximations."""
        rank = np.arange(len(self.shares)) / (len(self.shares) - 1)
        return np.asarray(rank**3 if self.graded else rank > 0, np.float64)


def hurdle(
    zeros: float, values: str = "gamma", stretch: float = 1.0, graded: bool = False, scale: int | None = None
) -> Law:
    """Zero with a probability, else of a gamma or a heavy-tailed log-normal distribution, stretched by a factor."""
    positive, usual = _POSITIVE[values]
    scale = usual if scale is None else scale
    ends = np.array([positive.ppf(1e-3), positive.ppf(1 - 1e-3)])  # the rest is cut off, for speed
    first, last = bucket_index(ends * stretch, scale)
    index = np.arange(first, last + 1, dtype=np.int64)
    lower, upper = bucket_bounds(index, scale)
    shares = np.diff(positive.cdf(np.append(lower, upper[-1]) / stretch))
    return Law(int(first), scale, np.concatenate([[zeros], (1 - zeros) * shares / shares.sum()]), graded)


def cells(shares: Floats, zeros: float = 0.0) -> Law:
    """A few values of given shares; the test gives each a bin of its own, so Cohen's omega is known exactly."""
    return Law(0, 0, np.concatenate([[zeros], (1 - zeros) * np.asarray(shares)]))


def mixture(laws: list[Law], weights: Floats) -> Law:
    """One law drawn by weight for every request; all of one scale."""
    first = min(law.first for law in laws)
    last = max(law.first + len(law.shares) - 1 for law in laws)
    shares = np.zeros(last - first + 1)
    for law, weight in zip(laws, weights, strict=True):
        shares[0] += weight * law.shares[0]
        start = law.first - first + 1
        shares[start : start + len(law.shares) - 1] += weight * law.shares[1:]
    return Law(first, laws[0].scale, shares)


def day(swing: float = 0.5, waking: float = 0.2) -> list[Law]:
    """A day in steps of two hours: brighter at noon by a factor of e^swing, and fewer zeros then."""
    height = np.sin(2 * np.pi * np.arange(12) / 12)
    return [hurdle(0.5 - waking * h, stretch=float(np.exp(swing * h)), scale=2) for h in height]


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


def stretch_at(omega: float, values: str = "gamma", bins: int = 7) -> float:
    """The factor that moves a distribution's positive values by Cohen's omega, over equal-share bins."""
    positive = _POSITIVE[values][0]
    cuts = positive.ppf(np.arange(1, bins) / bins)

    def excess(stretch: float) -> float:
        shares = np.diff(np.concatenate([[0.0], positive.cdf(cuts / stretch), [1.0]]))
        return float(np.sqrt(bins * ((shares - 1 / bins) ** 2).sum()) - omega)

    return float(brentq(excess, 1.0, 100.0))


def zeros_at(omega: float, zeros: float) -> float:
    """The share of zeros that lies Cohen's omega below another: more requests are active."""
    return float(zeros - omega * np.sqrt(zeros * (1 - zeros)))
