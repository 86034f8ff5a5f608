"""Common bins for two sparse histograms: what the drift test counts in.

Every channel gets its own bins, cut at equal shares of the *reference's* values, so a bin's expected count is known
beforehand and values outside the reference's range fall into its outermost bins. Everything is vectorised over
channels: the work is one pass over the sparse buckets, however many channels they belong to.
"""

from __future__ import annotations

import numpy as np

from agent.summary.histogram import Floats, Histogram, Ints, bucket_bounds, downscale, representative

MAX_BINS = 16
MIN_EXPECTED = 5.0
"""Smallest expected count of a bin in either sample (Cochran's rule for the chi-squared approximation)."""


def bin_count(n: Ints, n_reference: Ints) -> Ints:
    """Bins per channel, 2 to 16: the cube root of the effective sample size.

    Few bins keep the power on the smooth shifts that networks show; the chi-squared test loses it with every bin.
    """
    effective = n * (n_reference / np.maximum(n + n_reference, 1))
    return np.asarray(np.clip(np.rint(np.cbrt(effective)), 2, MAX_BINS), np.int64)


def common_bins(reference: Histogram, current: Histogram, bins: Ints) -> tuple[Ints, Ints]:
    """Counts of the values other than zero in equal-share bins of the reference.

    ``bins`` has shape (channels,). Returns two arrays of shape (channels, largest of ``bins``), reference and current;
    a channel uses its first ``bins`` columns. A bucket goes to bin ``floor(bins * F(middle))`` with F the reference's
    cumulative share; buckets that only the current sample has follow the reference's order.
    """
    reference, current = same_scale(reference, current)
    starts, before = _offsets(reference), _cumulated(reference)
    first, last = before[starts[:-1], None], before[starts[1:], None]
    inner = np.arange(1, max(int(bins.max(initial=1)), 2))
    # Twice the edges and middles, in whole numbers: shares computed in floats would split ties at random.
    edges = 2 * first + -(-2 * inner * (last - first) // bins[:, None])

    # Bins are runs of buckets, so looking up their few edges replaces a pass over all buckets.
    place = np.searchsorted(before[:-1] + before[1:], edges)
    used = (inner < bins[:, None]) & (last > first)
    place = np.where(used, place, starts[1:, None])
    table = np.diff(np.concatenate([first, before[place], last], axis=1), axis=1)

    limit = np.where(used, _first_keys(reference, starts, before, place, edges), _last_key(len(bins)))
    place = np.searchsorted(order_key(current), limit)
    starts, before = _offsets(current), _cumulated(current)
    bounds = (before[starts[:-1], None], before[place], before[starts[1:], None])
    return np.asarray(table, np.int64), np.asarray(np.diff(np.concatenate(bounds, axis=1), axis=1), np.int64)


def totals(histogram: Histogram) -> Ints:
    """Values counted per channel; the same as the histogram's own method, from one running sum."""
    starts, before = _offsets(histogram), _cumulated(histogram)
    return np.asarray(histogram.zeros + np.diff(before[starts]), np.int64)


def above(histogram: Histogram, index: Ints) -> Ints:
    """Positive values per channel in buckets beyond ``index``, shape (channels,)."""
    channel = np.arange(histogram.channels, dtype=np.int64)
    starts, before = _offsets(histogram), _cumulated(histogram)
    place = np.searchsorted(order_key(histogram), (channel << 34) + np.maximum(index + (1 << 31), 0), side="right")
    return np.asarray(before[starts[1:]] - before[place], np.int64)


def upper_quantile(histogram: Histogram, share: float) -> Floats:
    """Per channel, the upper end of the bucket that holds the ``share`` quantile; 0 where that is not positive."""
    starts, before = _offsets(histogram), _cumulated(histogram)
    n = histogram.zeros + np.diff(before[starts])
    beyond = np.floor((1 - share) * n).astype(np.int64)
    # The bucket above whose upper end ``beyond`` values lie, counted down from the channel's last.
    place = np.searchsorted(before, before[starts[1:]] - beyond, side="left") - 1
    inside = (place >= starts[:-1]) & (n > 0)
    which = np.where(inside, place, 0)
    if not len(histogram.index):
        return np.zeros(histogram.channels)
    positive = inside & (histogram.sign[which] > 0)
    ends = bucket_bounds(np.where(positive, histogram.index[which], 0), histogram.scale)[1]
    return np.where(positive, ends, 0.0)


def merge_sparse(reference: Ints, current: Ints) -> tuple[Floats, Floats, Ints]:
    """Joins neighbouring bins until each expects `MIN_EXPECTED` in the smaller sample.

    Takes and returns arrays of shape (channels, bins), plus the number of bins left per channel; columns past that
    number are zero. A remainder that stays too small joins the last full bin. Expectations come from the pooled
    counts, which are fixed under the null, so merging does not bend the test.
    """
    both = (reference + current).astype(np.float64)
    smaller = np.minimum(reference.sum(axis=1), current.sum(axis=1))
    expected = both * (smaller / np.maximum(both.sum(axis=1), 1))[:, None]
    full = expected >= MIN_EXPECTED
    used = full.sum(axis=1)
    # Most channels are continuous and have only full bins, then empty columns: nothing to merge.
    tidy = (both[:, 1:] == 0) | full[:, 1:]
    ready = full[:, 0] & tidy.all(axis=1) & (full[:, :-1] >= full[:, 1:]).all(axis=1)
    left, right = reference.astype(np.float64), current.astype(np.float64)
    rest = np.flatnonzero(~ready)
    if len(rest):
        left[rest], right[rest], used[rest] = _join(left[rest], right[rest], expected[rest])
    return left, right, np.where(smaller > 0, used, 0)


def _join(reference: Floats, current: Floats, expected: Floats) -> tuple[Floats, Floats, Ints]:
    """Joins neighbours from the left, all channels abreast."""
    rows = np.arange(len(reference))
    left, right = np.zeros(reference.shape), np.zeros(reference.shape)
    slot, filled = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    last = reference.shape[1] - 1
    remaining = expected.sum(axis=1)
    for column in range(last + 1):
        left[rows, slot] += reference[:, column]
        right[rows, slot] += current[:, column]
        filled += expected[:, column]
        remaining = remaining - expected[:, column]
        # Closing is worth while only if what follows can fill a bin of its own.
        close = (filled >= MIN_EXPECTED) & (remaining >= MIN_EXPECTED) & (slot < last)
        slot += close
        filled[close] = 0
    return left, right, slot + 1


def wasserstein(reference: Histogram, current: Histogram, channels: Ints) -> Floats:
    """Wasserstein-1 distance of the chosen channels, in the units of the values; 0 where a side is empty.

    Buckets stand for their geometric middle, so the distance is right to half a bucket's width (2 % at scale 4).
    Source: the CDF form of Ramdas, Garcia and Cuturi (2017), as in ``scipy.stats.wasserstein_distance``.
    """
    reference, current = same_scale(reference, current)
    distances = np.zeros(len(channels))
    for place, channel in enumerate(channels):
        (u, p), (v, q) = _values(reference, int(channel)), _values(current, int(channel))
        if not (p.sum() and q.sum()):
            continue
        support = np.unique(np.concatenate([u, v]))
        gap = _cumulative(support, u, p) - _cumulative(support, v, q)
        distances[place] = (np.abs(gap[:-1]) * np.diff(support)).sum()
    return distances


def same_scale(a: Histogram, b: Histogram) -> tuple[Histogram, Histogram]:
    """Both at the coarser of their two scales."""
    scale = min(a.scale, b.scale)
    return downscale(a, scale), downscale(b, scale)


def order_key(histogram: Histogram, which: Ints | slice = slice(None)) -> Ints:
    """One ascending integer per bucket (of ``which``, if not all) that orders by channel, then by value."""
    channel, sign, index = histogram.channel[which], histogram.sign[which], histogram.index[which]
    return np.asarray((channel << 34) + sign * (index + (1 << 31)), np.int64)


def _last_key(channels: int) -> Ints:
    """Above every key of a channel and below those of the next, shape (channels, 1)."""
    return ((np.arange(channels, dtype=np.int64) << 34) + (1 << 33))[:, None]


def _offsets(histogram: Histogram) -> Ints:
    """Where each channel's buckets begin, and the end of the last: shape (channels + 1,)."""
    return np.searchsorted(histogram.channel, np.arange(histogram.channels + 1))


def _cumulated(histogram: Histogram) -> Ints:
    """Values in all buckets before each, and in all: shape (buckets + 1,)."""
    total = np.zeros(len(histogram.count) + 1, np.int64)
    np.cumsum(histogram.count, out=total[1:])
    return total


def _first_keys(reference: Histogram, starts: Ints, before: Ints, place: Ints, edges: Ints) -> Ints:
    """Per edge (doubled), the lowest key of the upper bin: shape (channels, edges).

    A value between two of the reference's buckets is in the upper bin where all of the reference below it is.
    """
    end = starts[1:, None]
    if not len(reference.channel):
        return np.broadcast_to(_last_key(len(starts) - 1), place.shape)
    own = order_key(reference, np.minimum(place, len(reference.channel) - 1))
    after_lower = order_key(reference, np.maximum(place - 1, 0)) + 1
    gap_is_upper = (place > starts[:-1, None]) & (2 * before[place] >= edges)
    return np.where(gap_is_upper, after_lower, np.where(place < end, own, _last_key(len(starts) - 1)))


def _values(histogram: Histogram, channel: int) -> tuple[Floats, Floats]:
    start, stop = np.searchsorted(histogram.channel, [channel, channel + 1])
    part = slice(start, stop)
    one = Histogram(histogram.scale, *(getattr(histogram, name)[part] for name in ("zeros", *_COLUMNS)))
    values = np.concatenate([[0.0], representative(one)])
    return values, np.concatenate([[histogram.zeros[channel]], one.count]).astype(np.float64)


_COLUMNS = ("channel", "sign", "index", "count")


def _cumulative(support: Floats, values: Floats, counts: Floats) -> Floats:
    order = np.argsort(values)
    below = np.concatenate([[0.0], np.cumsum(counts[order])])
    return np.asarray(below[np.searchsorted(values[order], support, side="right")] / counts.sum(), np.float64)
