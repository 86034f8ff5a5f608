"""Drift of a probe against its reference, for all channels at once.

A rectifier's channel is a hurdle: whether a request activates it at all, how much of it, and how strongly if so. The
parts are tested apart, each with the smallest effect worth reporting *inside the null* (H0: Cohen's omega <=
min_effect), and combined by Bonferroni. So a million requests do not turn a meaningless shift into an alarm, and a
channel that is zero for nine requests in ten is not judged by its zeros alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.summary import Summary
from agent.summary.histogram import Floats, Ints
from detector.statistics.bins import bin_count, common_bins, merge_sparse, totals, wasserstein
from detector.statistics.proportions import share_shift, share_shift_given
from detector.statistics.shares import fraction_shift
from detector.statistics.values import chi_squared, rank_shift

PARTS = ("share of zeros", "values", "rank of the values", "active fraction")


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """Arrays of shape (channels,)."""

    statistic: Floats
    """Of the part that decides."""
    p_value: Floats
    effect: Floats
    """Cohen's omega of the part that decides, less what chance contributes; symmetric in the samples, 0 to 2. For the
    rank and the active fraction: the shift of the mean in standard deviations."""
    part: Ints
    """Index into `PARTS` of the part that decides."""
    p_parts: Floats
    """One by one, in the order of `PARTS`, shape (channels, parts); 1 where a part cannot be tested."""
    bins: Ints
    """Bins the values were compared in; fewer than 2 means that they could not be."""
    cells_reference: Floats
    """Counts of zero and of every bin, shape (channels, cells)."""
    cells: Floats
    n: Ints
    n_reference: Ints

    @property
    def psi(self) -> Floats:
        """Population stability index over zero and all bins."""
        return self.divergences(np.arange(len(self.n)))[0]

    @property
    def jensen_shannon(self) -> Floats:
        """Jensen-Shannon distance, base 2, 0 to 1, over zero and all bins."""
        return self.divergences(np.arange(len(self.n)))[1]

    def divergences(self, channels: Ints) -> tuple[Floats, Floats]:
        """PSI and Jensen-Shannon distance of the chosen channels."""
        known = (self.n_reference[channels] > 0) & (self.n[channels] > 0)
        return _divergences(self.cells_reference[channels], self.cells[channels], known)


def drift(
    reference: Summary,
    current: Summary,
    min_effect: float = 0.1,
    *,
    design_effect: Floats | float = 1.0,
    reference_risk: float = 0.0,
) -> Drift:
    """Tests every channel for a distribution unlike the reference's.

    ``design_effect`` (a number or an array of shape (channels,), at least 1) divides the sample sizes. With
    ``reference_risk`` 0 the p-values hold on average over references and windows. For use in every window against one
    and the same reference they must hold given that reference: with a positive ``reference_risk`` they do, but for
    references that err in a channel by more than is exceeded with that probability (`REFERENCE_RISK` in checks; see
    `detector.statistics.reference_error` for what that is a condition on). The reference is then taken as it
    is, and the null is widened, once, by what its finite size may hide; see `detector.statistics.values.tolerance`.

    Raises ValueError where the channel counts differ or an argument is out of range.

    >>> import numpy as np
    >>> from agent.summary import from_pooled
    >>> rng = np.random.default_rng(0)
    >>> before, after = rng.gamma(2, size=(1000, 1)), rng.gamma(3, size=(400, 1))
    >>> result = drift(from_pooled(before, before, before > 0), from_pooled(after, after, after > 0))
    >>> bool(result.p_value[0] < 1e-6)
    True
    """
    if reference.channels != current.channels:
        raise ValueError(f"cannot compare {current.channels} channels with a reference of {reference.channels}")
    divisor = np.broadcast_to(np.asarray(design_effect, np.float64), reference.channels)
    if min_effect < 0 or not 0 <= reference_risk < 1 or not (divisor >= 1).all():
        raise ValueError(
            f"min_effect {min_effect} must not be negative, reference_risk {reference_risk} must lie in [0, 1) "
            "and the design effect must be at least 1"
        )
    old, new = reference.mean_histogram, current.mean_histogram
    n0, n = totals(old), totals(new)
    scaled = (new.zeros / divisor, n / divisor, old.zeros / divisor, n0 / divisor)
    zero = (
        share_shift_given(*scaled, min_effect, reference_risk) if reference_risk else share_shift(*scaled, min_effect)
    )
    fraction = fraction_shift(reference, current, min_effect, divisor, reference_risk)

    m0, m = n0 - old.zeros, n - new.zeros
    p_counts, q_counts, bins = merge_sparse(*common_bins(old, new, bin_count(m, m0)))
    binned = (p_counts, q_counts, bins, min_effect, divisor, reference_risk)
    parts = (zero, chi_squared(*binned), rank_shift(*binned), fraction)

    p_parts = np.stack([one.p_value for one in parts], axis=1)
    part = p_parts.argmin(axis=1)
    chosen = (part, np.arange(len(part)))
    testable = np.maximum(sum(one.testable.astype(np.int64) for one in parts), 1)
    return Drift(
        statistic=np.stack([one.statistic for one in parts])[chosen],
        p_value=np.minimum(1, testable * p_parts[chosen[::-1]]),
        effect=np.stack([one.effect for one in parts])[chosen],
        part=part,
        p_parts=p_parts,
        bins=bins,
        cells_reference=np.column_stack([old.zeros, p_counts]),
        cells=np.column_stack([new.zeros, q_counts]),
        n=n,
        n_reference=n0,
    )


def normed_wasserstein(reference: Summary, current: Summary, channels: Ints) -> Floats:
    """Wasserstein-1 of the chosen channels' pooled means in reference standard deviations.

    Where the reference does not vary, its mean's magnitude stands in, and 1 where that is 0 too.
    """
    deviation = np.sqrt(reference.m2[channels] / np.maximum(reference.finite[channels], 1))
    size = np.abs(reference.mean[channels])
    unit = np.where(deviation > 1e-9 * size, deviation, np.where(size > 0, size, 1.0))
    distance = wasserstein(reference.mean_histogram, current.mean_histogram, channels)
    return np.asarray(distance / np.where(unit > 0, unit, 1.0), np.float64)


def _divergences(reference: Floats, current: Floats, known: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """PSI, with half a request added to each occupied cell so that it stays finite, and Jensen-Shannon distance."""
    occupied = (reference + current) > 0

    def shares(counts: Floats, extra: float) -> Floats:
        padded = np.where(occupied, counts + extra, 0.0)
        return np.asarray(padded / np.maximum(padded.sum(axis=1), 1e-300)[:, None], np.float64)

    def entropy(share: Floats) -> Floats:
        return np.asarray(-(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1), np.float64)

    p, q = shares(reference, 0.5), shares(current, 0.5)
    psi = ((q - p) * np.log(np.where(occupied, q, 1) / np.where(occupied, p, 1))).sum(axis=1)
    p, q = shares(reference, 0.0), shares(current, 0.0)
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return np.where(known, psi, 0.0), np.where(known, np.sqrt(np.maximum(divergence, 0)), 0.0)
