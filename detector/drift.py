"""Drift of a probe against its reference, for all channels at once.

A rectifier's channel is a hurdle: whether a request activates it at all, how much of it, and how strongly if so. The
parts are tested apart, each with the smallest effect worth reporting *inside the null* (H0: Cohen's omega <=
min_effect), and combined by Bonferroni. So a million requests do not turn a meaningless shift into an alarm, and a
channel that is zero for nine requests in ten is not judged by its zeros alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ncx2

from agent.summary import Summary
from agent.summary.histogram import Floats, Ints
from detector.bins import bin_count, common_bins, merge_sparse, totals, wasserstein
from detector.proportions import share_shift, share_shift_given
from detector.shares import fraction_shift

REFERENCE_RISK = 0.001
"""Chance, per channel, that the reference's own error is larger than checks allow for."""
PARTS = ("share of zeros", "values", "active fraction")


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """Arrays of shape (channels,)."""

    statistic: Floats
    """Of the part that decides."""
    p_value: Floats
    effect: Floats
    """Cohen's omega of the part that decides, less what chance contributes; symmetric in the samples, 0 to 2. For the
    active fraction: the shift of its mean in standard deviations."""
    part: Ints
    """Index into `PARTS` of the part that decides."""
    p_zero: Floats
    p_values: Floats
    """Of the part that differs from zero."""
    p_fraction: Floats
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
    references that err in a channel by more than is exceeded with that probability. The reference is then taken as it
    is, and the null is widened, once, by what its finite size may hide; see `tolerance`.

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
    statistic, p_values, effect = _chi_squared(p_counts, q_counts, bins, min_effect, divisor, reference_risk)

    parts = np.maximum(zero.testable.astype(np.int64) + (bins >= 2) + fraction.testable, 1)
    p_parts = np.stack([zero.p_value, p_values, fraction.p_value])
    part = p_parts.argmin(axis=0)
    channel = np.arange(len(part))
    return Drift(
        statistic=np.stack([zero.statistic, statistic, fraction.statistic])[part, channel],
        p_value=np.minimum(1, parts * p_parts[part, channel]),
        effect=np.stack([zero.effect, effect, fraction.effect])[part, channel],
        part=part,
        p_zero=zero.p_value,
        p_values=p_values,
        p_fraction=fraction.p_value,
        bins=bins,
        cells_reference=np.column_stack([old.zeros, p_counts]),
        cells=np.column_stack([new.zeros, q_counts]),
        n=n,
        n_reference=n0,
    )


def tolerance(min_effect: float, freedom: Ints, n_reference: Floats, risk: float) -> Floats:
    """Cohen's omega between the current law and the *observed* reference that a shift of ``min_effect`` may show.

    The reference's counts scatter around its law, so n0 * omega^2 is noncentral chi-squared with ``freedom`` degrees of
    freedom and noncentrality n0 * min_effect^2; this is its quantile, exceeded with probability ``risk``. It is sharper
    than the sum of min_effect and sqrt(chi2_{df, 1 - risk} / n0), which assumes that the reference errs straight away
    from the shift.
    """
    size = np.maximum(n_reference, 1.0)
    length = min_effect * np.sqrt(size)
    root = np.zeros(len(size))
    for df in np.unique(freedom):
        here = freedom == df
        grid, quantiles = _quantiles(int(df), risk)
        # Beyond the grid the quantile's root is that of a normal distribution around the noncentrality's root.
        root[here] = np.interp(length[here], grid, quantiles) + np.maximum(length[here] - grid[-1], 0)
    return np.asarray(root / np.sqrt(size), np.float64)


@cache
def _quantiles(freedom: int, risk: float) -> tuple[Floats, Floats]:
    """Roots of the noncentral chi-squared's upper quantiles over roots of its noncentrality."""
    grid = np.concatenate([np.linspace(0, 8, 65), np.linspace(9, 60, 18)])
    return grid, np.sqrt(np.asarray(ncx2.isf(risk, freedom, grid**2), np.float64))


def normed_wasserstein(reference: Summary, current: Summary, channels: Ints) -> Floats:
    """Wasserstein-1 of the chosen channels' pooled means in reference standard deviations.

    Where the reference does not vary, its mean's magnitude stands in, and 1 where that is 0 too.
    """
    deviation = np.sqrt(reference.m2[channels] / np.maximum(reference.finite[channels], 1))
    size = np.abs(reference.mean[channels])
    unit = np.where(deviation > 1e-9 * size, deviation, np.where(size > 0, size, 1.0))
    distance = wasserstein(reference.mean_histogram, current.mean_histogram, channels)
    return np.asarray(distance / np.where(unit > 0, unit, 1.0), np.float64)


def _chi_squared(
    reference: Floats, current: Floats, bins: Ints, min_effect: float, design_effect: Floats, risk: float
) -> tuple[Floats, Floats, Floats]:
    """Statistic, p-value and effect of the binned values; p is 1 where there are fewer than two bins.

    The denominators are the two samples' midpoints, which hold the variance steady away from equality for any ratio
    of sample sizes (Pearson's pooled denominators reject up to nine times too often at omega = min_effect when the
    current sample is the larger). With equal sizes this is Pearson's statistic. ``stretch`` carries the boundary from
    the reference's metric, sum (q - p)^2 / p, in which users state min_effect, to the midpoint metric.
    """
    m0, m = reference.sum(axis=1), current.sum(axis=1)
    p, q = reference / np.maximum(m0, 1)[:, None], current / np.maximum(m, 1)[:, None]
    squared = (q - p) ** 2
    middle = (p + q) / 2
    freedom = np.maximum(bins - 1, 1)
    if risk:  # given the reference, only the current sample scatters
        effective = m / design_effect
        allowed = tolerance(min_effect, freedom, m0 / design_effect, risk)
    else:
        effective = m * m0 / np.maximum(m + m0, 1) / design_effect
        allowed = np.full(len(bins), min_effect)
    omega = (squared / np.where(middle > 0, middle, 1)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        omega_reference = np.where(squared > 0, squared / p, 0).sum(axis=1)
        # Chance adds the same to both; without that the ratio is nearer to the boundary's.
        noise = np.where(effective * omega_reference > 2 * freedom, freedom / np.maximum(effective, 1e-300), 0)
        stretch = np.where(omega_reference > 0, np.maximum(1, (omega - noise) / (omega_reference - noise)), 1)
    statistic = effective * omega
    usable: NDArray[np.bool_] = bins >= 2
    p_value = np.ones(len(bins))
    p_value[usable] = ncx2_tail(statistic[usable], freedom[usable], (effective * allowed**2 * stretch)[usable])
    effect = np.sqrt(np.maximum(omega - (bins - 1) / np.maximum(effective, 1e-300), 0))
    return np.where(usable, statistic, 0.0), p_value, np.where(usable, effect, 0.0)


def ncx2_tail(statistic: Floats, freedom: Ints, noncentrality: Floats) -> Floats:
    """P(noncentral chi-squared >= statistic), clipped into [0, 1]: far tails may round to just outside."""
    tail = np.asarray(ncx2.sf(statistic, freedom, noncentrality), np.float64)
    return np.clip(np.nan_to_num(tail, nan=1.0), 0.0, 1.0)


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
