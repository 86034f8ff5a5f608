"""Summaries of requests drawn from a law, independent or in sessions, for thousands of channels at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from agent.summary import Histogram, Summary, empty
from tests.statistics.laws import Law, cells

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sessions:
    """Requests come in sessions of one size; each repeats its session's value with a probability.

    The correlation of two requests of a session is ``repeat`` squared, whatever is measured, so the design effect is
    1 + (size - 1) * repeat^2.
    """

    size: int = 1
    repeat: float = 0.0

    @property
    def design_effect(self) -> float:
        """Variance of a share of requests, over that of independent requests."""
        return 1 + (self.size - 1) * self.repeat**2


INDEPENDENT = Sessions()


def counts(law: Law, n: int, channels: int, rng: np.random.Generator, sessions: Sessions = INDEPENDENT) -> Ints:
    """Requests per cell of the law, shape (channels, cells); the last session is cut short where n asks for it."""
    if sessions.size == 1:
        return rng.multinomial(n, law.shares, size=channels).astype(np.int64)
    total = np.zeros((channels, len(law.shares)), np.int64)
    for size, number in ((sessions.size, n // sessions.size), (n % sessions.size, 1)):
        if not size:
            continue
        # How many sessions have 0, 1, ... requests that repeat the session's value; the rest is drawn afresh.
        repeated = rng.multinomial(number, binom.pmf(np.arange(size + 1), size, sessions.repeat), size=channels)
        for times in range(1, size + 1):
            total += times * rng.multinomial(repeated[:, times], law.shares)
    return total + rng.multinomial(n - total.sum(axis=1), law.shares)


def summary(law: Law, counted: Ints) -> Summary:
    """The summary of requests counted in a law's cells; pooled mean and maximum are one value."""
    channels = len(counted)
    channel, column = np.nonzero(counted[:, 1:])
    histogram = Histogram(
        scale=law.scale,
        zeros=counted[:, 0].astype(np.int64),
        channel=channel.astype(np.int64),
        sign=np.ones(len(channel), np.int64),
        index=column.astype(np.int64) + law.first,
        count=counted[channel, column + 1].astype(np.int64),
    )
    n = int(counted[0].sum())
    active = n - histogram.zeros
    return replace(
        empty(channels),
        n=n,
        active=active,
        fraction_sum=counted @ law.fractions,
        fraction_sq_sum=counted @ law.fractions**2,
        mean_histogram=histogram,
        max_histogram=histogram,
    )


def draw(law: Law, n: int, channels: int, rng: np.random.Generator, sessions: Sessions = INDEPENDENT) -> Summary:
    """Independent channels, each of ``n`` requests."""
    return summary(law, counts(law, n, channels, rng, sessions))


@dataclass(frozen=True, slots=True)
class Mood:
    """The share of zeros of a channel wanders around one half, from window to window: an AR(1) process."""

    swing: float
    """Standard deviation of the share."""
    correlation: float
    """Of neighbouring windows."""

    def windows(self, n: int, channels: int, rng: np.random.Generator) -> Iterator[Summary]:
        """Windows of ``n`` requests each for ever; every channel has moods of its own."""
        law = cells(np.ones(1), zeros=0.5)
        away = rng.normal(size=channels)
        while True:
            zeros = rng.binomial(n, np.clip(0.5 + self.swing * away, 0, 1))
            yield summary(law, np.column_stack([zeros, n - zeros]))
            away = self.correlation * away + np.sqrt(1 - self.correlation**2) * rng.normal(size=channels)


def part(whole: Summary, start: int, stop: int) -> Summary:
    """A run of channels."""
    first, last = np.searchsorted(whole.mean_histogram.channel, [start, stop])
    old = whole.mean_histogram
    histogram = Histogram(
        old.scale,
        old.zeros[start:stop],
        old.channel[first:last] - start,
        old.sign[first:last],
        old.index[first:last],
        old.count[first:last],
    )
    arrays = ("active", "nonfinite", "fraction_sum", "fraction_sq_sum", "mean", "m2")
    cut = {name: getattr(whole, name)[start:stop] for name in arrays}
    return Summary(n=whole.n, **cut, mean_histogram=histogram, max_histogram=histogram)
