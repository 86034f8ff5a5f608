"""What of a summary rests on too few requests is told no finer than a histogram's bucket tells it.

A mean over twenty requests of which nineteen are exactly zero is the twentieth's value, divided by a known number. It
is nearly so where the nineteen are tiny, as the probabilities of a classifier are that is sure of other classes: their
buckets say how little they add, and what is left is the twentieth's. Mean and M2 together give away two such values.

Where fewer than ``least`` requests have a value other than zero, or one or two outweigh the rest, moments are therefore
worked out from the buckets, each value standing at the geometric middle of its bucket: within half a bucket's width
(2.2 % at scale 4) of the truth, and telling nothing that the histogram does not tell.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agent.summary import LARGEST, Summary
from agent.summary.histogram import DEFAULT_SCALE, Floats, Ints, bucket_bounds, bucket_index, representative

FEWEST_ALIKE = 3
"""Sums are exact where what requests add to them is spread as if so many, or more, added the same: two sums of fewer
could be solved."""
_ROUNDING = 1e-9
"""Of sums of shares, relative."""


def are_many(total: Floats, requests: Ints, squares: Floats, least: int) -> NDArray[np.bool_]:
    """Whether sums of what is not negative may be told exactly: that of no request, or of enough that are alike enough.

    All of one shape: the sums, how many requests add to each, and the sums of the squares of what each of them adds.
    """
    if least <= 1:
        return np.ones(np.shape(total), np.bool_)
    with np.errstate(all="ignore"):  # what leaves the range of a double does not count as many
        alike = (total / np.sqrt(squares)) ** 2 >= FEWEST_ALIKE
    return np.asarray((requests == 0) | ((requests >= least) & alike), np.bool_)


def coarsened(summary: Summary, least: int) -> Summary:
    """The same requests, with every number that rests on fewer than ``least`` of them at the width of a bucket.

    Counts and histograms stay as they are.
    """
    mean, m2 = _moments(summary, least)
    fraction_sum, fraction_sq_sum = _fractions(summary, least)
    return replace(summary, mean=mean, m2=m2, fraction_sum=fraction_sum, fraction_sq_sum=fraction_sq_sum)


def middles(values: Floats) -> Floats:
    """Each finite value at the geometric middle of its bucket: it tells no more than the bucket; others stay."""
    told = np.isfinite(values) & (values != 0)
    with np.errstate(over="ignore"):
        lower, upper = bucket_bounds(bucket_index(np.abs(values[told]), DEFAULT_SCALE), DEFAULT_SCALE)
    coarse = values.copy()
    coarse[told] = np.copysign(np.sqrt(lower) * np.sqrt(upper), values[told])
    return coarse


def rounded_up(value: float) -> float:
    """The upper end of the bucket of a finite value that is not negative; 0 stays 0."""
    if value <= 0:
        return 0.0
    with np.errstate(over="ignore"):
        upper = bucket_bounds(bucket_index(np.array([value]), DEFAULT_SCALE), DEFAULT_SCALE)[1]
    return float(min(upper[0], np.finfo(np.float64).max))


def _moments(summary: Summary, least: int) -> tuple[Floats, Floats]:
    """Mean and M2; of channels with too few values other than zero, from their buckets."""
    histogram = summary.mean_histogram
    values = summary.finite - histogram.zeros
    middle = np.clip(representative(histogram), -LARGEST, LARGEST)
    thin = ~are_many(*_fourths(histogram.channel, histogram.count, np.abs(middle), values), least)
    if not thin.any():
        return summary.mean, summary.m2
    finite = np.maximum(summary.finite, 1)
    total = _per_channel(histogram.channel, histogram.count * middle, summary.channels)
    mean = np.clip(total / finite, -LARGEST, LARGEST)
    apart = histogram.count * (middle - mean[histogram.channel]) ** 2
    m2 = _per_channel(histogram.channel, apart, summary.channels) + histogram.zeros * mean**2
    return np.where(thin, mean, summary.mean), np.where(thin, m2, summary.m2)


def _fourths(channel: Ints, count: Ints, magnitude: Floats, values: Ints) -> tuple[Floats, Ints, Floats]:
    """As `are_many` takes them: squares of the values in units of the largest in each channel, for M2 tells squares."""
    largest = np.zeros(len(values))
    np.maximum.at(largest, channel, magnitude)
    with np.errstate(invalid="ignore"):  # the middle of the smallest buckets of all is zero
        squares = (magnitude / largest[channel]) ** 2
    total = _per_channel(channel, count * squares, len(values))
    return total, values, _per_channel(channel, count * squares**2, len(values))


def _fractions(summary: Summary, least: int) -> tuple[Floats, Floats]:
    """Sums of active fractions; where too few requests are active, in part, at the middle of a bucket.

    Where all but one or two active requests are active in whole, it is what these lack that is told by its bucket.
    """
    active, total, squares = summary.active, summary.fraction_sum, summary.fraction_sq_sum
    lacking, lacking_squares = active - total, active - 2 * total + squares
    partly = (total > 0) & (lacking > _ROUNDING * active)
    thin = partly & ~are_many(total, active, squares, least)
    nearly = partly & ~thin & ~are_many(lacking, active, lacking_squares, least)
    if thin.any():
        few, few_squares = _rounded(total, squares, active, thin)
        total, squares = np.where(thin, few, total), np.where(thin, few_squares, squares)
    if nearly.any():
        few, few_squares = _rounded(lacking, lacking_squares, active, nearly)
        total = np.where(nearly, active - few, total)
        squares = np.where(nearly, active - 2 * few + few_squares, squares)
    return total, squares


def _rounded(total: Floats, squares: Floats, active: Ints, where: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Sums of shares and of their squares at the middles of their buckets, and possible.

    The square is rounded at half the scale, where a single request's bucket is that of its share.
    """
    total = np.minimum(_middle(total, where, DEFAULT_SCALE), active)
    squares = _middle(squares, where, DEFAULT_SCALE - 1)
    return total, np.clip(squares, total**2 / np.maximum(active, 1), total)


def _middle(values: Floats, where: NDArray[np.bool_], scale: int) -> Floats:
    """The geometric middles of the values' buckets; 0 for what is not positive."""
    known = where & (values > 0)
    lower, upper = bucket_bounds(bucket_index(np.where(known, values, 1.0), scale), scale)
    return np.where(known, np.sqrt(lower * upper), 0.0)


def _per_channel(channel: Ints, values: Floats, channels: int) -> Floats:
    return np.asarray(np.bincount(channel, values, channels), np.float64)
