"""Common bins for two sparse histograms: what the drift test counts in.

Every channel gets its own bins, cut at equal shares of the *reference's* values, so a bin's expected count is known
beforehand and values outside the reference's range fall into its outermost bins. Everything is vectorised over
channels: the work is one pass over the sparse buckets, however many channels they belong to.
"""

from __future__ import annotations

import numpy as np

from agent.summary.histogram import Floats, Histogram, Ints, downscale, representative

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

    ``bins`` has shape (channels,). Returns two arrays of shape (channels, MAX_BINS), reference and current; a channel
    uses its first ``bins`` columns. A bucket goes to bin ``floor(bins * F(middle))`` with F the reference's cumulative
    share, so buckets that only the current sample has follow the reference's order too.
    """
    reference, current = same_scale(reference, current)
    totals = np.bincount(reference.channel, reference.count, reference.channels)
    before = np.concatenate([[0], np.cumsum(reference.count)])
    starts = np.concatenate([[0.0], np.cumsum(totals)])[:-1]
    share = bins / np.maximum(totals, 1)

    own = before[:-1] + reference.count / 2 - starts[reference.channel]
    table = _table(reference, own * share[reference.channel], bins)

    keys, wanted = order_key(reference), order_key(current)
    place = np.searchsorted(keys, wanted)
    found = place < len(keys)
    found[found] = keys[place[found]] == wanted[found]
    half = np.zeros(len(wanted))
    half[found] = reference.count[place[found]] / 2
    middle = before[place] + half - starts[current.channel]
    return table, _table(current, middle * share[current.channel], bins)


def merge_sparse(reference: Ints, current: Ints) -> tuple[Floats, Floats, Ints]:
    """Joins neighbouring bins until each expects `MIN_EXPECTED` in the smaller sample.

    Takes and returns arrays of shape (channels, bins), plus the number of bins left per channel; columns past that
    number are zero. A remainder that stays too small joins the last full bin. Expectations come from the pooled
    counts, which are fixed under the null, so merging does not bend the test.
    """
    rows = np.arange(len(reference))
    both = (reference + current).astype(np.float64)
    smaller = np.minimum(reference.sum(axis=1), current.sum(axis=1))
    weight = smaller / np.maximum(both.sum(axis=1), 1)
    expected = both * weight[:, None]
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
    return left, right, np.where(smaller > 0, slot + 1, 0)


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


def order_key(histogram: Histogram) -> Ints:
    """One ascending integer per bucket that orders by channel, then by value."""
    return np.asarray((histogram.channel << 34) + histogram.sign * (histogram.index + (1 << 31)), np.int64)


def _table(histogram: Histogram, position: Floats, bins: Ints) -> Ints:
    column = np.minimum(position.astype(np.int64), bins[histogram.channel] - 1)
    flat = np.bincount(histogram.channel * MAX_BINS + column, histogram.count, histogram.channels * MAX_BINS)
    return flat.astype(np.int64).reshape(-1, MAX_BINS)


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
