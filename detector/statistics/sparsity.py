"""Sparsity of a layer, and the band that its reference sets for it.

A rectifier's layer has a share of zeros, over requests, channels and positions. It is one number, so it sees what no
channel shows alone: every channel a little less active than it was. How far it may move without meaning anything is no
rule of thumb but what the reference itself says: its own sparsity, give or take `min_effect` standard deviations of one
channel, and what a reference of that size may err by.

How much the number scatters from window to window depends on how the channels of one request hang together, which no
summary keeps. So the reference's windows are asked, in blocks of 1, 2, 4, ... of them, as for the design effect: a mood
of the traffic moves all channels together, and is the same evidence again and again. With few windows that is poorly
known, but never worse than this: the standard deviation of a mean is at most the mean of the standard deviations, which
is reached where all channels rise and fall as one.
Source: the scatter of means of blocks (batch means) for the long-run variance; Minkowski's inequality for the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import chi2

from agent.summary import Summary
from agent.summary.histogram import Floats
from detector.statistics.design_effect import LEVELS, MIN_BLOCKS, PRIOR, DesignEffect, Scatter, drawn, upper

RISK = 0.01
"""One-sided chance that the upper bound of a layer's variance is too low. It rests on one number per window, and not on
many channels, so it asks for more care than the design effect."""
REFERENCE_RISK = 0.001
"""Chance that the reference errs by more than the band allows for. Less than for a channel: a layer is one number,
whose error is not averaged with that of others."""
MIN_ACTIVE = 50.0
"""Independent activations, or zeros where those are rarer, that a window needs for the normal approximation."""


@dataclass(frozen=True, slots=True)
class Sparsity:
    """One layer's; shares of zeros, 0 to 1."""

    value: float
    reference: float
    low: float
    high: float
    """The band, cut to what a share can be."""
    statistic: float
    """Distance from the band in standard errors of the window; 0 inside."""
    p_value: float
    effect: float
    """Distance from the reference in standard deviations of one channel's active fraction, averaged over channels."""
    n: int
    n_reference: int

    @property
    def outside(self) -> bool:
        """Whether the value lies outside the band."""
        return not self.low <= self.value <= self.high

    def shift(self, reference: Summary, current: Summary) -> Floats:
        """By channel, in its standard deviations: how far its share of zeros moved the layer's way; less than 0 where
        it moved the other way. 0 where it does not vary."""
        before, now = (1 - side.fraction_sum / np.maximum(side.finite, 1) for side in (reference, current))
        unit = _deviations(reference)
        moved = np.sign(self.value - self.reference) * (now - before)
        return np.asarray(np.where(unit > 0, moved / np.where(unit > 0, unit, 1), 0.0), np.float64)


def share_of_zeros(summary: Summary) -> float:
    """Over requests, channels and positions; NaN where a channel has no finite request."""
    if not summary.channels or not (summary.finite > 0).all():
        return math.nan
    return float(np.clip(1 - (summary.fraction_sum / summary.finite).mean(), 0, 1))


def sparsity(
    reference: Summary,
    current: Summary,
    effect: DesignEffect,
    min_effect: float,
    requests_per_window: float,
    reference_risk: float = REFERENCE_RISK,
) -> Sparsity | None:
    """Tests H0: the layer's share of zeros is within its reference's band. Two-sided.

    ``effect`` is what the reference's windows said; ``reference_risk`` the chance that the reference errs by more than
    the band allows for. None where a channel has no finite request on either side. The p-value is 1 where a window of
    this size has fewer than `MIN_ACTIVE` independent activations. Raises ValueError where the channel counts differ.
    """
    if reference.channels != current.channels:
        raise ValueError(f"cannot compare {current.channels} channels with a reference of {reference.channels}")
    value, middle = share_of_zeros(current), share_of_zeros(reference)
    if math.isnan(value) or math.isnan(middle):
        return None
    unit = float(_deviations(reference).mean())
    known = variance(effect, unit, effect.requests_per_window)
    half = min_effect * unit - float(ndtri(reference_risk / 2)) * math.sqrt(known / reference.n)
    varied = variance(effect, unit, requests_per_window)
    independent = current.n * min(middle, 1 - middle) * (unit**2 / varied if varied > 0 else 0.0)
    # A share that moves away from 0 or 1 varies more than it did; one that moves nearer is not trusted to vary less.
    growth = max(1.0, float(_deviations(current).mean()) / unit) if unit > 0 else 1.0
    error = growth * math.sqrt(varied / current.n)
    distance = abs(value - middle)
    p_value = 1.0
    if independent >= MIN_ACTIVE:
        p_value = min(1.0, float(ndtr((half - distance) / error) + ndtr((-half - distance) / error)))
    return Sparsity(
        value=value,
        reference=middle,
        low=max(0.0, middle - half),
        high=min(1.0, middle + half),
        statistic=max(0.0, distance - half) / error if error > 0 else 0.0,
        p_value=p_value,
        effect=distance / unit if unit > 0 else 0.0,
        n=current.n,
        n_reference=reference.n,
    )


def variance(effect: DesignEffect, unit: float, requests_per_window: float) -> float:
    """Of a window's sparsity, times its requests, as an upper bound; ``unit`` is the channels' mean deviation.

    What moves whole windows weighs in proportion to their size; windows smaller than the reference's keep its variance.
    """
    ratio = max(1.0, requests_per_window / effect.requests_per_window) if effect.requests_per_window > 0 else 1.0
    scatter = effect.sparsity or Scatter(math.inf, upper(1.0, 0.0))
    as_one = unit**2 * (1 + (scatter.design_effect - 1) * ratio)
    return min(scatter.variance * ratio, as_one)


class Estimator:
    """Takes in a layer's reference windows one by one, in order of time, as `design_effect.Estimator` does."""

    def __init__(self, pooled: Summary) -> None:
        """``pooled`` is the reference itself: all the windows merged."""
        self._n, self._requests = pooled.n, 0
        self._deviations = _deviations(pooled)
        self._levels = [_Level(1 << power, pooled.channels + 1) for power in range(LEVELS)]

    def add(self, window: Summary) -> None:
        """Raises ValueError where the window has another number of channels."""
        if window.channels != len(self._deviations):
            raise ValueError(f"a window has {window.channels} channels, its reference {len(self._deviations)}")
        self._requests += window.n
        layer = share_of_zeros(window)
        if math.isnan(layer):
            return  # the mean over fewer channels is another number
        shares = np.append(window.fraction_sum / window.finite, layer)
        for level in self._levels:
            level.add(shares * window.n, window.n)

    def result(self) -> Scatter | None:
        """Of the windows so far; None where they are not the reference's requests, each once."""
        if self._requests != self._n or not self._levels[0].blocks:
            return None
        single, *longer = self._levels
        longer = [level for level in longer if level.blocks >= MIN_BLOCKS]
        seen, bound = _variance(single, longer)
        as_one = float(self._deviations.mean()) ** 2
        # Drawn towards 1, the design effect must not deny what the layer itself was seen to do.
        design = max(_design_effect(single, longer, self._deviations), seen / as_one if as_one else 1.0)
        return Scatter(bound, design)


class _Level:
    """Sums over blocks of so many windows that follow each other; arrays are of the channels and, last, the layer."""

    def __init__(self, size: int, width: int) -> None:
        self.size, self.blocks, self.n = size, 0, 0
        self._sums, self._squares = np.zeros(width), np.zeros(width)
        self._sum, self._requests, self._held = np.zeros(width), 0, 0

    def add(self, sums: Floats, n: int) -> None:
        self._sum += sums
        self._requests += n
        self._held += 1
        if self._held == self.size:
            self._sums += self._sum
            self._squares += self._sum**2 / self._requests
            self.n += self._requests
            self.blocks += 1
            self._sum, self._requests, self._held = np.zeros_like(self._sum), 0, 0

    @property
    def freedom(self) -> int:
        return max(self.blocks - 1, 0)

    @property
    def scatter(self) -> Floats:
        """Sum over blocks of n (mean of the block - mean of all)^2."""
        return np.maximum(self._squares - self._sums**2 / max(self.n, 1), 0)


def _variance(single: _Level, longer: Sequence[_Level]) -> tuple[float, float]:
    """Of the layer, as the windows have it and as an upper bound: the largest over the lengths of blocks."""
    freedom = single.freedom
    if not freedom:
        return 0.0, math.inf
    first = float(single.scatter[-1]) / freedom
    # Few long blocks say little: they are drawn towards what the windows themselves say.
    others = [(PRIOR * first + float(level.scatter[-1])) / (PRIOR + level.freedom) for level in longer]
    largest = max([first, *others])
    return largest, largest * freedom / float(chi2.ppf(RISK, freedom))


def _design_effect(single: _Level, longer: Sequence[_Level], deviations: Floats) -> float:
    """Of the channels' fractions.

    Weighted by their deviations: then the square of the mean deviation times this is at least the square of the mean
    over channels of the deviations between blocks, whatever channels have which.
    """
    varying = deviations > 0
    weight = float(deviations.sum())

    def ratio(level: _Level) -> float:
        if not level.freedom or not weight:
            return 1.0
        return float((level.scatter[:-1][varying] / deviations[varying]).sum()) / (level.freedom * weight)

    first = ratio(single)
    bound = upper(first, float(single.freedom))
    caution = bound / drawn(first, float(single.freedom))
    return max([1.0, bound, *(caution * drawn(ratio(level), float(level.freedom)) for level in longer)])


def _deviations(summary: Summary) -> Floats:
    """Standard deviation of the active fraction from request to request, shape (channels,)."""
    n = np.maximum(summary.finite, 1)
    return np.sqrt(np.maximum(summary.fraction_sq_sum / n - (summary.fraction_sum / n) ** 2, 0))
