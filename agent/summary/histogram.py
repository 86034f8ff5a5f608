"""Sparse exponential histograms, one per channel, that merge exactly.

Bucket ``i`` at ``scale`` holds the values in ``(base**i, base**(i + 1)]`` with ``base = 2 ** (2 ** -scale)``: the
layout of OpenTelemetry's exponential histogram, so a bucket's relative width is ``base - 1`` (4.4 % at scale 4).
Exactly zero has a count of its own; negative values have mirrored buckets. Counts are integers, so merging shards in
any order gives the same histogram as one pass over all values. When a channel would occupy more than ``MAX_BUCKETS``
buckets the scale of the whole histogram drops until it fits; because fitting is monotone in the set of values, the
final scale does not depend on the order of merging.

Source: OpenTelemetry metrics data model, "ExponentialHistogram"; Masson et al., DDSketch, VLDB 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DEFAULT_SCALE = 4
MIN_SCALE = -10
MAX_SCALE = 20
MAX_BUCKETS = 160
_INDEX_OFFSET = 1 << 31  # above |index| of any double at MAX_SCALE


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts per channel in coordinate form, sorted by (channel, value), without repeats or empty buckets.

    ``zeros`` has shape (channels,). ``channel``, ``sign`` (-1 or +1), ``index`` and ``count`` have shape (buckets,).
    """

    scale: int
    zeros: Ints
    channel: Ints
    sign: Ints
    index: Ints
    count: Ints

    @property
    def channels(self) -> int:
        return len(self.zeros)

    def totals(self) -> Ints:
        """Values counted per channel, shape (channels,)."""
        return self.zeros + np.bincount(self.channel, self.count, self.channels).astype(np.int64)

    def same_as(self, other: Histogram) -> bool:
        """Whether both hold the same counts at the same scale."""
        return self.scale == other.scale and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("zeros", "channel", "sign", "index", "count")
        )


def empty(channels: int, scale: int = DEFAULT_SCALE) -> Histogram:
    """A histogram of no values."""
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise ValueError(f"histogram scale {scale} is outside [{MIN_SCALE}, {MAX_SCALE}]")
    none = np.zeros(0, np.int64)
    return Histogram(scale, np.zeros(channels, np.int64), none, none, none, none)


def from_values(values: Floats, scale: int = DEFAULT_SCALE) -> Histogram:
    """Counts the finite entries of ``values`` (shape (requests, channels)); NaN and infinities are passed over."""
    base = empty(values.shape[1], scale)
    finite = np.isfinite(values)
    zeros = (finite & (values == 0)).sum(axis=0, dtype=np.int64)
    rows, channel = np.nonzero(finite & (values != 0))
    kept = values[rows, channel]
    sign = np.where(kept > 0, 1, -1).astype(np.int64)
    index = bucket_index(np.abs(kept), base.scale)
    counted = _collect(base.scale, zeros, channel.astype(np.int64), sign, index, np.ones(len(kept), np.int64))
    return _fit(counted)


def bucket_index(magnitude: Floats, scale: int) -> Ints:
    """Bucket of each positive finite magnitude: ``ceil(log_base(v)) - 1``, exact also on powers of two.

    Splits v into mantissa and exponent and searches the mantissa in a table, because ``floor(log)`` rounds wrongly
    next to bucket boundaries.
    """
    mantissa, exponent = np.frexp(np.asarray(magnitude, np.float64))
    whole = exponent.astype(np.int64) - 1
    if scale <= 0:
        return np.asarray((whole - (mantissa == 0.5)) >> -scale, np.int64)
    bounds = np.exp2(np.arange(1 << scale) / (1 << scale))
    return np.asarray((whole << scale) + np.searchsorted(bounds, mantissa * 2, side="left") - 1, np.int64)


def bucket_bounds(index: Ints, scale: int) -> tuple[Floats, Floats]:
    """Lower (exclusive) and upper (inclusive) magnitude of each bucket."""
    step = 2.0**-scale
    return np.exp2(index * step), np.exp2((index + 1) * step)


def representative(histogram: Histogram) -> Floats:
    """The signed geometric middle of every bucket, shape (buckets,): within half a bucket's width of each value."""
    lower, upper = bucket_bounds(histogram.index, histogram.scale)
    return np.asarray(histogram.sign * np.sqrt(lower) * np.sqrt(upper), np.float64)


def downscale(histogram: Histogram, scale: int) -> Histogram:
    """The same counts at a coarser scale."""
    if scale > histogram.scale:
        raise ValueError(f"cannot refine a histogram from scale {histogram.scale} to {scale}")
    if scale == histogram.scale:
        return histogram
    index = histogram.index >> (histogram.scale - scale)
    return _collect(scale, histogram.zeros, histogram.channel, histogram.sign, index, histogram.count)


def merge(a: Histogram, b: Histogram) -> Histogram:
    """All values of both; raises ValueError where the channel counts differ."""
    if a.channels != b.channels:
        raise ValueError(f"cannot merge histograms of {a.channels} and {b.channels} channels")
    scale = min(a.scale, b.scale)
    a, b = downscale(a, scale), downscale(b, scale)
    parts = (np.concatenate([getattr(a, name), getattr(b, name)]) for name in ("channel", "sign", "index", "count"))
    return _fit(_collect(scale, a.zeros + b.zeros, *parts))


def without(histogram: Histogram, gone: NDArray[np.bool_]) -> Histogram:
    """The histogram with nothing counted in the channels that are ``gone``, shape (channels,)."""
    kept = ~gone[histogram.channel]
    return Histogram(
        histogram.scale,
        np.where(gone, 0, histogram.zeros),
        histogram.channel[kept],
        histogram.sign[kept],
        histogram.index[kept],
        histogram.count[kept],
    )


def _collect(scale: int, zeros: Ints, channel: Ints, sign: Ints, index: Ints, count: Ints) -> Histogram:
    """Sorts by channel and value and adds up repeats."""
    # One integer key sorts several times faster than three columns: 20 bits of channel over 34 of signed bucket.
    key = (channel << 34) + (sign * (index + _INDEX_OFFSET) + (1 << 33))
    order = np.argsort(key)
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    first = order[starts]
    total = np.add.reduceat(count[order], starts) if len(starts) else count
    return Histogram(scale, zeros, channel[first], sign[first], index[first], total)


def _fit(histogram: Histogram) -> Histogram:
    while len(histogram.channel) and histogram.scale > MIN_SCALE:
        if np.bincount(histogram.channel).max() <= MAX_BUCKETS:
            break
        histogram = downscale(histogram, histogram.scale - 1)
    return histogram
