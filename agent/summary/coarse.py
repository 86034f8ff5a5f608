"""What of a summary rests on too few requests is told no finer than a histogram's bucket tells it.

A mean over twenty requests of which nineteen are exactly zero is the twentieth's value, divided by a known number.
Where fewer than ``least`` requests have a value other than zero, moments are therefore worked out from the buckets,
each value standing at the geometric middle of its bucket: within half a bucket's width (2.2 % at scale 4) of the truth,
and telling nothing that the histogram does not tell.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agent.summary import LARGEST, Summary
from agent.summary.histogram import DEFAULT_SCALE, Floats, Ints, bucket_bounds, bucket_index, representative


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
    thin = (values > 0) & (values < least)
    if not thin.any():
        return summary.mean, summary.m2
    middle = np.clip(representative(histogram), -LARGEST, LARGEST)
    finite = np.maximum(summary.finite, 1)
    total = _per_channel(histogram.channel, histogram.count * middle, summary.channels)
    mean = np.clip(total / finite, -LARGEST, LARGEST)
    apart = histogram.count * (middle - mean[histogram.channel]) ** 2
    m2 = _per_channel(histogram.channel, apart, summary.channels) + histogram.zeros * mean**2
    return np.where(thin, mean, summary.mean), np.where(thin, m2, summary.m2)


def _fractions(summary: Summary, least: int) -> tuple[Floats, Floats]:
    """Sums of active fractions; where too few requests are active, in part, at the middle of a bucket.

    The square is rounded at half the scale, where a single request's bucket is that of its fraction.
    """
    active = summary.active
    thin = (active > 0) & (active < least) & (summary.fraction_sum != active) & (summary.fraction_sum > 0)
    if not thin.any():
        return summary.fraction_sum, summary.fraction_sq_sum
    total = np.minimum(_middle(summary.fraction_sum, thin, DEFAULT_SCALE), active)
    squares = _middle(summary.fraction_sq_sum, thin, DEFAULT_SCALE - 1)
    squares = np.clip(squares, total**2 / np.maximum(active, 1), total)
    return np.where(thin, total, summary.fraction_sum), np.where(thin, squares, summary.fraction_sq_sum)


def _middle(values: Floats, where: NDArray[np.bool_], scale: int) -> Floats:
    """The geometric middles of the values' buckets; 0 for what is not positive."""
    known = where & (values > 0)
    lower, upper = bucket_bounds(bucket_index(np.where(known, values, 1.0), scale), scale)
    return np.where(known, np.sqrt(lower * upper), 0.0)


def _per_channel(channel: Ints, values: Floats, channels: int) -> Floats:
    return np.asarray(np.bincount(channel, values, channels), np.float64)
