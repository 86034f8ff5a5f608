"""Mergeable per-channel summaries of pooled activations: a commutative monoid under `merge`.

The statistical unit is the request: each request contributes one pooled mean, one pooled maximum and one active
fraction per channel, and a summary says how those are distributed over requests. Counts and histograms merge exactly;
``mean`` and ``m2`` merge by Chan, Golub and LeVeque (1979) in float64 and agree with a single pass to rounding.

A value whose magnitude is above `LARGEST` counts as infinite. So no sum of squares leaves the range of a double, over
however many requests, windows and agents summaries are merged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.summary import histogram as _histogram
from agent.summary.histogram import Floats, Histogram, Ints

__all__ = ["LARGEST", "Histogram", "Summary", "empty", "from_pooled", "merge", "usable"]

LARGEST = 1e80
"""A larger magnitude counts as infinite; single precision ends at 3.4e38."""


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """Statistics of ``n`` requests; every array has shape (channels,).

    A request with a pooled value that is NaN, infinite or of a magnitude above `LARGEST` in a channel counts there in
    ``nonfinite`` and nowhere else, so the moments of a channel are over ``n - nonfinite`` requests.
    """

    n: int
    active: Ints
    """Requests with any positive activation."""
    nonfinite: Ints
    fraction_sum: Floats
    """Sum over requests of the share of positive activations, 0 to 1 each."""
    fraction_sq_sum: Floats
    mean: Floats
    """Mean of the pooled mean; 0 where there is no finite request."""
    m2: Floats
    """Sum of squared deviations of the pooled mean from ``mean``."""
    min: Floats
    """Smallest pooled mean; +inf where there is no finite request."""
    max: Floats
    """Largest pooled maximum; -inf where there is no finite request."""
    mean_histogram: Histogram
    max_histogram: Histogram

    @property
    def channels(self) -> int:
        return len(self.active)

    @property
    def finite(self) -> Ints:
        """Requests with finite pooled values, per channel."""
        return self.n - self.nonfinite


def empty(channels: int, scale: int = _histogram.DEFAULT_SCALE) -> Summary:
    """The neutral element of `merge`."""
    return Summary(
        n=0,
        active=np.zeros(channels, np.int64),
        nonfinite=np.zeros(channels, np.int64),
        fraction_sum=np.zeros(channels),
        fraction_sq_sum=np.zeros(channels),
        mean=np.zeros(channels),
        m2=np.zeros(channels),
        min=np.full(channels, np.inf),
        max=np.full(channels, -np.inf),
        mean_histogram=_histogram.empty(channels, scale),
        max_histogram=_histogram.empty(channels, scale),
    )


def from_pooled(
    mean: NDArray[np.floating],
    maximum: NDArray[np.floating],
    fraction: NDArray[np.floating],
    scale: int = _histogram.DEFAULT_SCALE,
) -> Summary:
    """Summarises one batch.

    The three arrays have shape (requests, channels): pooled mean, pooled maximum and share of positive activations of
    each request. Raises ValueError where the shapes differ.
    """
    if not (mean.ndim == 2 and mean.shape == maximum.shape == fraction.shape):
        raise ValueError(f"pooled arrays differ in shape: {mean.shape}, {maximum.shape}, {fraction.shape}")
    means, maxima, shares = (np.asarray(values, np.float64) for values in (mean, maximum, fraction))
    ok = (np.abs(means) <= LARGEST) & (np.abs(maxima) <= LARGEST) & np.isfinite(shares)  # false for NaN
    finite = ok.sum(axis=0, dtype=np.int64)
    fractions = np.clip(np.where(ok, shares, 0.0), 0.0, 1.0)
    kept = np.where(ok, means, 0.0)
    average = kept.sum(axis=0) / np.maximum(finite, 1)
    return Summary(
        n=len(means),
        active=(ok & (maxima > 0)).sum(axis=0, dtype=np.int64),
        nonfinite=len(means) - finite,
        fraction_sum=fractions.sum(axis=0),
        fraction_sq_sum=(fractions**2).sum(axis=0),
        mean=average,
        m2=(np.where(ok, kept - average, 0.0) ** 2).sum(axis=0),
        min=np.where(ok, means, np.inf).min(axis=0, initial=np.inf),
        max=np.where(ok, maxima, -np.inf).max(axis=0, initial=-np.inf),
        mean_histogram=_histogram.from_values(np.where(ok, means, np.nan), scale),
        max_histogram=_histogram.from_values(np.where(ok, maxima, np.nan), scale),
    )


def merge(a: Summary, b: Summary) -> Summary:
    """The summary of both sets of requests; raises ValueError where the channel counts differ."""
    if a.channels != b.channels:
        raise ValueError(f"cannot merge summaries of {a.channels} and {b.channels} channels")
    na, nb = a.finite, b.finite
    total = np.maximum(na + nb, 1)
    delta = b.mean - a.mean
    return Summary(
        n=a.n + b.n,
        active=a.active + b.active,
        nonfinite=a.nonfinite + b.nonfinite,
        fraction_sum=a.fraction_sum + b.fraction_sum,
        fraction_sq_sum=a.fraction_sq_sum + b.fraction_sq_sum,
        mean=(na * a.mean + nb * b.mean) / total,
        m2=a.m2 + b.m2 + delta**2 * (na * (nb / total)),
        min=np.minimum(a.min, b.min),
        max=np.maximum(a.max, b.max),
        mean_histogram=_histogram.merge(a.mean_histogram, b.mean_histogram),
        max_histogram=_histogram.merge(a.max_histogram, b.max_histogram),
    )


def usable(summary: Summary) -> Summary:
    """The summary; in channels whose numbers no requests can have given, all requests count as not finite.

    Such numbers come from releases that knew no `LARGEST`, from sums that left the range of a double, and from damage.
    """
    bad = ~(np.abs(summary.mean) <= LARGEST) | ~(summary.m2 <= summary.finite * (2 * LARGEST) ** 2)
    bad |= ~np.isfinite(summary.fraction_sum) | ~np.isfinite(summary.fraction_sq_sum)
    for extreme in (summary.min, summary.max):
        bad |= np.isnan(extreme) | (np.isfinite(extreme) & (np.abs(extreme) > LARGEST))
    if not bad.any():
        return summary
    zeroed = ("active", "fraction_sum", "fraction_sq_sum", "mean", "m2")
    zeros: dict[str, Any] = {name: np.where(bad, 0, getattr(summary, name)) for name in zeroed}
    return replace(
        summary,
        nonfinite=np.where(bad, summary.n, summary.nonfinite),
        min=np.where(bad, np.inf, summary.min),
        max=np.where(bad, -np.inf, summary.max),
        mean_histogram=_histogram.without(summary.mean_histogram, bad),
        max_histogram=_histogram.without(summary.max_histogram, bad),
        **zeros,
    )
