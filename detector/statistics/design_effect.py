"""Design effect: how much more windows differ from each other than independent requests would let them.

Requests come in sessions, from cameras that stand still, under a load that changes with the hour. The reference's own
windows show how much that matters: per channel, Pearson's statistic of the table windows x cells (zero, and the
quarters of the reference's other values) over its degrees of freedom is 1 in expectation where requests are
independent. Tests divide their effective sample sizes by the design effect.

With few windows the estimate is poor, so it is drawn towards 1 with the weight of `PRIOR` degrees of freedom, and its
upper confidence bound is used: never below 1, 2.05 where a single window says nothing, 1.65 after three windows
without any excess, 1.2 after twenty. Blocks of 2, 4, 8, ... windows are compared too: a mood of the traffic that lasts
for many windows makes blocks differ by more than windows, and a stream of evidence as much slower.

Whether a request activates a channel may hang together far more than how strongly it does, as where one customer's
requests never do and another's always: the shares of zeros are therefore also looked at by themselves, channel by
channel, and no channel's effect is below theirs.
Sources: the quasi-likelihood of McCullagh and Nelder (1989), section 4.5; batch means for the long-run variance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from agent.summary import Summary
from agent.summary.histogram import Floats
from detector.statistics.bins import common_bins

PRIOR = 10.0
"""Degrees of freedom with which the layer's estimate is drawn towards 1."""
CHANNEL_PRIOR = 40.0
"""Degrees of freedom with which a channel's estimate is drawn towards its layer's."""
RISK = 0.1
"""One-sided chance that the upper bound of the layer's estimate is too low."""
QUARTERS = 4
LEVELS = 7
"""Blocks of up to 64 windows."""
MIN_BLOCKS = 4
"""Blocks of neighbouring windows that must be there for their differences to count."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """How a layer's sparsity differs between its reference's windows, as upper bounds; see `statistics.sparsity`."""

    variance: float
    """Of a window's sparsity, times its requests; infinite where there is but one window."""
    design_effect: float
    """Of the active fractions of its channels, at least 1."""


@dataclass(frozen=True, slots=True, eq=False)
class DesignEffect:
    """One layer's."""

    values: Floats
    """To divide sample sizes by, at least 1; shape (channels,)."""
    estimate: float
    """The layer's raw estimate: 1 where windows differ as independent requests would, 1 too where nothing is known."""
    windows: int
    requests_per_window: float
    sparsity: Scatter | None = None
    """None where the windows are not known apart, and in references made before it was kept."""

    def at(self, requests_per_window: float) -> Floats:
        """The design effect of windows of another size.

        A shift of the whole window, such as the hour's, weighs in proportion to the window's size; so larger windows
        than the reference's have a larger effect. Smaller ones keep the reference's, to be safe.
        """
        ratio = requests_per_window / self.requests_per_window if self.requests_per_window > 0 else 1.0
        return np.asarray(1 + (self.values - 1) * max(1.0, ratio), np.float64)


def worst(effects: Mapping[str, DesignEffect]) -> float:
    """The largest of the layers' median design effects, at least 1: what a whole model is planned with."""
    return max([1.0, *(float(np.median(effect.values)) for effect in effects.values() if len(effect.values))])


def unknown(channels: int) -> DesignEffect:
    """Where the reference's windows are not known apart."""
    return DesignEffect(np.full(channels, upper(1.0, 0.0)), 1.0, 0, 0.0)


class Estimator:
    """Takes in a layer's reference windows one by one, in order of time, so that they need not all be in memory."""

    def __init__(self, pooled: Summary) -> None:
        """``pooled`` is the reference itself: all the windows merged."""
        whole = pooled.mean_histogram
        self._n, self._whole, self._bins = pooled.n, whole, np.full(pooled.channels, QUARTERS, np.int64)
        self._cells = self._counts(pooled)
        self._levels = [_Level(1 << power, self._cells.shape) for power in range(LEVELS)]
        self._windows = self._requests = 0

    def add(self, window: Summary) -> None:
        """Raises ValueError where the window has another number of channels."""
        if window.channels != len(self._cells):
            raise ValueError(f"a window has {window.channels} channels, its reference {len(self._cells)}")
        if not window.n:
            return
        self._requests += window.n
        self._windows += 1
        counts, n = self._counts(window), window.finite.astype(np.float64)
        for level in self._levels:
            level.add(counts, n)

    def result(self) -> DesignEffect:
        """Of the windows so far; `unknown` where they are not the reference's requests, each once."""
        if self._requests != self._n or not self._windows:
            return unknown(len(self._cells))
        return _of_levels(self._cells, self._levels, self._windows, self._requests / self._windows)

    def _counts(self, summary: Summary) -> Floats:
        values = common_bins(self._whole, summary.mean_histogram, self._bins)[1]
        return np.column_stack([summary.mean_histogram.zeros, values]).astype(np.float64)


class _Level:
    """Sums over blocks of so many windows that follow each other."""

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        self.size, self.blocks = size, 0
        self.squares, self.n, self.used = np.zeros(shape), np.zeros(shape[0]), np.zeros(shape[0])
        self.zeros = np.zeros(shape[0])
        self._counts, self._requests, self._held = np.zeros(shape), np.zeros(shape[0]), 0

    def add(self, counts: Floats, n: Floats) -> None:
        self._counts += counts
        self._requests += n
        self._held += 1
        if self._held == self.size:
            self.squares += self._counts**2 / np.maximum(self._requests, 1)[:, None]
            self.n += self._requests
            self.zeros += self._counts[:, 0]
            self.used += self._requests > 0
            self.blocks += 1
            self._counts, self._requests, self._held = np.zeros_like(self._counts), np.zeros_like(self._requests), 0

    def ratios(self, cells: Floats) -> tuple[Floats, Floats]:
        """Pearson's statistic of blocks x cells per channel, and its degrees of freedom; ``cells`` are all counts."""
        occupied = cells > 0
        share = cells / np.maximum(cells.sum(axis=1), 1)[:, None]
        # sum (x - n p)^2 / (n p) = sum x^2 / (n p) - N over all cells, as the shares sum to 1.
        statistic = np.where(occupied, self.squares / np.where(occupied, share, 1), 0).sum(axis=1) - self.n
        freedom = np.maximum(self.used - 1, 0) * np.maximum(occupied.sum(axis=1) - 1, 0)
        return np.where(freedom > 0, statistic, 0.0), freedom

    def of_zeros(self, cells: Floats) -> tuple[Floats, Floats]:
        """The same of blocks x (zero or not)."""
        share = cells[:, 0] / np.maximum(cells.sum(axis=1), 1)
        mixed = (share > 0) & (share < 1)
        squares = self.squares[:, 0]
        others = self.n - 2 * self.zeros + squares  # sum (n - x)^2 / n
        zero, rest = squares / np.where(mixed, share, 1), others / np.where(mixed, 1 - share, 1)
        freedom = np.where(mixed, np.maximum(self.used - 1, 0), 0.0)
        return np.where(freedom > 0, zero + rest - self.n, 0.0), freedom


def estimate(pooled: Summary, windows: Iterable[Summary]) -> DesignEffect:
    """Of a layer, from its reference ``pooled`` and the windows that it was merged from."""
    estimator = Estimator(pooled)
    for window in windows:
        estimator.add(window)
    return estimator.result()


def _of_levels(cells: Floats, levels: Sequence[_Level], windows: int, requests_per_window: float) -> DesignEffect:
    statistic, freedom = levels[0].ratios(cells)
    whole, known = _pooled(statistic, freedom)
    layer = upper(whole, known)
    caution = layer / drawn(whole, known)
    values = (CHANNEL_PRIOR * layer + statistic) / (CHANNEL_PRIOR + freedom)
    # Where windows resemble their neighbours, many say as little as few, and blocks differ by more than windows.
    longer = _growth([_pooled(*level.ratios(cells)) for level in levels if level.blocks >= MIN_BLOCKS])
    values = np.maximum(np.maximum(layer, values) * longer, 1.0)
    values = np.maximum(values, caution * _of_zeros(cells, levels))
    return DesignEffect(values, whole, windows, requests_per_window)


def _pooled(statistic: Floats, freedom: Floats) -> tuple[float, float]:
    """The ratio over all channels, and degrees of freedom of one: they see the same requests, so know no more."""
    usable = freedom > 0
    if not usable.any():
        return 1.0, 0.0
    return float(statistic[usable].sum() / freedom[usable].sum()), float(freedom[usable].mean())


def _of_zeros(cells: Floats, levels: Sequence[_Level]) -> Floats:
    """Of each channel's share of zeros: its own ratio, drawn towards that of all; all tell how it grows with blocks."""
    statistic, freedom = levels[0].of_zeros(cells)
    layer = drawn(*_pooled(statistic, freedom))
    grown = _growth([_pooled(*level.of_zeros(cells)) for level in levels if level.blocks >= MIN_BLOCKS])
    return np.asarray((CHANNEL_PRIOR * layer + statistic) / (CHANNEL_PRIOR + freedom) * grown, np.float64)


def _growth(ratios: Sequence[tuple[float, float]]) -> float:
    """How much larger the effect of blocks may be than that of windows, which come first; at least 1.

    There are few long blocks, so what they say is drawn towards what blocks half as long say. Drawn towards 1 instead,
    moods of many windows would hide in a reference of less than many dozens of them.
    """
    if not ratios:
        return 1.0
    shorter = windows = largest = drawn(*ratios[0])
    for value, freedom in ratios[1:]:
        shorter = (PRIOR * shorter + freedom * value) / (PRIOR + freedom)
        largest = max(largest, shorter)
    return largest / windows


def drawn(value: float, freedom: float) -> float:
    """A variance ratio with so many degrees of freedom, drawn towards 1."""
    return (PRIOR + freedom * value) / (PRIOR + freedom)


def upper(value: float, freedom: float) -> float:
    """The upper confidence bound of a variance ratio, drawn towards 1."""
    return float(drawn(value, freedom) * (PRIOR + freedom) / chi2.ppf(RISK, PRIOR + freedom))
