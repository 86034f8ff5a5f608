"""Design effect: how much more windows differ from each other than independent requests would let them.

Requests come in sessions, from cameras that stand still, under a load that changes with the hour. The reference's own
windows show how much that matters: per channel, Pearson's statistic of the table windows x cells (zero, and the
quarters of the reference's other values) over its degrees of freedom is 1 in expectation where requests are
independent. Tests divide their effective sample sizes by the design effect.

With few windows the estimate is poor, so it is drawn towards 1 with the weight of `PRIOR` degrees of freedom, and its
upper confidence bound is used: never below 1, 2.05 where a single window says nothing, 1.65 after three windows
without any excess, 1.2 after twenty. Source: the quasi-likelihood of McCullagh and Nelder (1989), section 4.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from agent.summary import Summary
from agent.summary.histogram import Floats
from detector.bins import common_bins

PRIOR = 10.0
"""Degrees of freedom with which the layer's estimate is drawn towards 1."""
CHANNEL_PRIOR = 40.0
"""Degrees of freedom with which a channel's estimate is drawn towards its layer's."""
RISK = 0.1
"""One-sided chance that the upper bound of the layer's estimate is too low."""
QUARTERS = 4


@dataclass(frozen=True, slots=True, eq=False)
class DesignEffect:
    """One layer's."""

    values: Floats
    """To divide sample sizes by, at least 1; shape (channels,)."""
    estimate: float
    """The layer's raw estimate: 1 where windows differ as independent requests would, 1 too where nothing is known."""
    windows: int
    requests_per_window: float

    def at(self, requests_per_window: float) -> Floats:
        """The design effect of windows of another size.

        A shift of the whole window, such as the hour's, weighs in proportion to the window's size; so larger windows
        than the reference's have a larger effect. Smaller ones keep the reference's, to be safe.
        """
        ratio = requests_per_window / self.requests_per_window if self.requests_per_window > 0 else 1.0
        return np.asarray(1 + (self.values - 1) * max(1.0, ratio), np.float64)


def unknown(channels: int) -> DesignEffect:
    """Where the reference's windows are not known apart."""
    return DesignEffect(np.full(channels, _upper(1.0, 0.0)), 1.0, 0, 0.0)


class Estimator:
    """Takes in a layer's reference windows one by one, so that they need not be in memory together."""

    def __init__(self, pooled: Summary) -> None:
        """``pooled`` is the reference itself: all the windows merged."""
        whole = pooled.mean_histogram
        self._n, self._whole, self._bins = pooled.n, whole, np.full(pooled.channels, QUARTERS, np.int64)
        self._cells = self._counts(pooled)
        self._squares, self._count = np.zeros_like(self._cells), np.zeros(pooled.channels)
        self._windows = self._requests = 0

    def add(self, window: Summary) -> None:
        """Raises ValueError where the window has another number of channels."""
        if window.channels != len(self._cells):
            raise ValueError(f"a window has {window.channels} channels, its reference {len(self._cells)}")
        n = window.finite
        self._squares += self._counts(window) ** 2 / np.maximum(n, 1)[:, None]
        self._count += n > 0
        self._requests += window.n
        self._windows += window.n > 0

    def result(self) -> DesignEffect:
        """Of the windows so far; `unknown` where they are not the reference's requests, each once."""
        if self._requests != self._n:
            return unknown(len(self._cells))
        return _of_table(self._cells, self._squares, self._count, self._windows, self._requests)

    def _counts(self, summary: Summary) -> Floats:
        values = common_bins(self._whole, summary.mean_histogram, self._bins)[1]
        return np.column_stack([summary.mean_histogram.zeros, values]).astype(np.float64)


def estimate(pooled: Summary, windows: Iterable[Summary]) -> DesignEffect:
    """Of a layer, from its reference ``pooled`` and the windows that it was merged from."""
    estimator = Estimator(pooled)
    for window in windows:
        estimator.add(window)
    return estimator.result()


def _of_table(cells: Floats, squares: Floats, count: Floats, seen: int, requests: int) -> DesignEffect:
    """``squares``: per cell, the sum over windows of (cell's count)^2 / requests; ``count``: windows with requests."""
    n = cells.sum(axis=1)
    occupied = cells > 0
    # sum (x - n p)^2 / (n p) = sum x^2 / (n p) - N, cell by cell with p the pooled share.
    statistic = (np.where(occupied, squares / np.where(occupied, cells, 1), 0).sum(axis=1) * n) - n
    freedom = np.maximum(count - 1, 0) * np.maximum(occupied.sum(axis=1) - 1, 0)
    usable = freedom > 0
    if not usable.any():
        whole, freedom_layer = 1.0, 0.0
    else:
        whole = float(statistic[usable].sum() / freedom[usable].sum())
        # Channels see the same requests, so all of them together may know no more than one does.
        freedom_layer = float(freedom[usable].mean())
    layer = _upper(whole, freedom_layer)
    own = (CHANNEL_PRIOR * layer + np.where(usable, statistic, 0)) / (CHANNEL_PRIOR + freedom)
    values = np.maximum(np.maximum(layer, np.where(usable, own, layer)), 1.0)
    return DesignEffect(values, whole, seen, requests / seen if seen else 0.0)


def _upper(value: float, freedom: float) -> float:
    """The upper confidence bound of a variance ratio, drawn towards 1."""
    drawn = (PRIOR + freedom * value) / (PRIOR + freedom)
    return float(drawn * (PRIOR + freedom) / chi2.ppf(RISK, PRIOR + freedom))
