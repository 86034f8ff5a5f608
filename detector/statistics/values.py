"""How the values other than zero are distributed: two tests of counts in bins of equal reference mass.

The chi-squared test sees every change of shape and pays for it with a degree of freedom per bin. Most shifts of a
network's activations are smooth, up or down: the rank test spends all its power on those.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import ncx2

from agent.summary.histogram import Floats, Ints
from detector.statistics.proportions import Shift, beyond
from detector.statistics.reference_error import SLACK, of_the_unchanged, root_of_the_unchanged

NOTHING = 1e-7
"""A statistic that is called no evidence at all; with one degree of freedom it is exceeded with a chance of .9997."""


def chi_squared(
    reference: Floats, current: Floats, bins: Ints, min_effect: float, design_effect: Floats, risk: float
) -> Shift:
    """Any change of shape: tests H0: Cohen's omega of the binned values is at most ``min_effect``.

    ``reference`` and ``current`` are counts of shape (channels, bins), of which a channel uses its first ``bins``. With
    a positive ``risk`` the p-value holds for one given reference, see `tolerance`. Needs two bins.

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
        allowed = tolerance(min_effect, freedom, m0 / design_effect, risk, effective)
    else:
        effective = m * m0 / np.maximum(m + m0, 1) / design_effect
        allowed = np.full(len(bins), min_effect)
    omega = (squared / np.where(middle > 0, middle, 1)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        omega_reference = np.where(squared > 0, squared / p, 0).sum(axis=1)
        # Chance adds the same to both; without that the ratio is nearer to the boundary's.
        noise = np.where(effective * omega_reference > 2 * freedom, freedom / np.maximum(effective, 1e-300), 0)
        stretch = np.where(omega_reference > 0, np.maximum(1, (omega - noise) / (omega_reference - noise)), 1)
    # Estimated denominators make small samples' statistics too large, by .65 over the smaller size in simulation.
    shrink = np.maximum(1 - design_effect / np.maximum(np.minimum(m, m0), 1), 0)
    statistic = effective * omega * shrink
    usable: NDArray[np.bool_] = bins >= 2
    p_value = np.ones(len(bins))
    p_value[usable] = ncx2_tail(statistic[usable], freedom[usable], (effective * allowed**2 * stretch)[usable])
    effect = np.sqrt(np.maximum(omega - (bins - 1) / np.maximum(effective, 1e-300), 0))
    return Shift(np.where(usable, statistic, 0.0), p_value, np.where(usable, effect, 0.0), usable)


def ncx2_tail(statistic: Floats, freedom: Ints, noncentrality: Floats) -> Floats:
    """P(noncentral chi-squared >= statistic), clipped into [0, 1]: far tails may round to just outside.

    1 below `NOTHING`, where the library raises OverflowError for a noncentrality above 340.
    """
    tail = np.ones(np.broadcast(statistic, freedom, noncentrality).shape)
    some = np.broadcast_to(statistic >= NOTHING, tail.shape)
    at = (np.broadcast_to(one, tail.shape)[some] for one in (statistic, freedom, noncentrality))
    tail[some] = ncx2.sf(*at)
    return np.clip(np.nan_to_num(tail, nan=1.0), 0.0, 1.0)


def rank_shift(
    reference: Floats, current: Floats, bins: Ints, min_effect: float, design_effect: Floats, risk: float
) -> Shift:
    """A shift up or down: tests H0: the mean rank, in standard deviations, is within ``min_effect`` of the reference's.

    Arguments as in `chi_squared`. The ranks are the reference's mid-ranks of the bins, centred and scaled to variance
    1, so the test is Wilcoxon's for grouped values (the first component of Neyman's smooth test). By Cauchy and Schwarz
    a shift of omega moves the mean rank by omega at most, so the null is the same as that of `chi_squared`. Two-sided.
    Needs three bins: with two it would say the same again.
    """
    m0, m = reference.sum(axis=1), current.sum(axis=1)
    p, q = reference / np.maximum(m0, 1)[:, None], current / np.maximum(m, 1)[:, None]
    rank = np.cumsum(p, axis=1) - p / 2 - 0.5
    spread = np.sqrt((p * rank**2).sum(axis=1))
    score = rank / np.where(spread > 0, spread, 1.0)[:, None]
    moved = (q * score).sum(axis=1)
    # A current law may scatter more than the reference's; where it does, that counts.
    variance = np.maximum((q * score**2).sum(axis=1) - moved**2, 1.0)
    size0, size = np.maximum(m0 / design_effect, 1e-300), np.maximum(m / design_effect, 1e-300)
    if risk:
        deviation, error = np.sqrt(variance / size), 1 / np.sqrt(size0)
        allowed = np.maximum(min_effect - float(ndtri(risk / 2)) * error, of_the_unchanged(error, deviation))
    else:
        deviation, allowed = np.sqrt(variance * (1 / size + 1 / size0)), np.full(len(size), min_effect)
    testable: NDArray[np.bool_] = bins >= 3
    z, margin = np.abs(moved) / deviation, allowed / deviation
    noise = variance * (1 / size + 1 / size0)
    return Shift(
        statistic=np.where(testable, z**2, 0.0),
        p_value=np.where(testable, beyond(z, margin), 1.0),
        effect=np.where(testable, np.sqrt(np.maximum(moved**2 - noise, 0)), 0.0),
        testable=testable,
    )


def tolerance(min_effect: float, freedom: Ints, n_reference: Floats, risk: float, n: Floats | None = None) -> Floats:
    """Cohen's omega between the current law and the *observed* reference that a shift of ``min_effect`` may show.

    The reference's counts scatter around its law, so n0 * omega^2 is noncentral chi-squared with ``freedom`` degrees of
    freedom and noncentrality n0 * min_effect^2; this is its quantile, exceeded with probability ``risk``. It is sharper
    than the sum of min_effect and sqrt(chi2_{df, 1 - risk} / n0), which assumes that the reference errs straight away
    from the shift. With the windows' size ``n`` it is never less than a channel that has not changed may show; see
    `detector.statistics.reference_error`.
    """
    size = np.maximum(n_reference, 1.0)
    length = min_effect * np.sqrt(size)
    root = np.zeros(len(size))
    for df in np.unique(freedom):
        here = freedom == df
        grid, quantiles = _quantiles(int(df), risk)
        # Beyond the grid the quantile's root is that of a normal distribution around the noncentrality's root.
        root[here] = np.interp(length[here], grid, quantiles) + np.maximum(length[here] - grid[-1], 0)
        if n is not None:
            still = root_of_the_unchanged(int(df)) - SLACK * np.sqrt(size[here] / np.maximum(n[here], 1e-300))
            root[here] = np.maximum(root[here], still)
    return np.asarray(root / np.sqrt(size), np.float64)


@cache
def _quantiles(freedom: int, risk: float) -> tuple[Floats, Floats]:
    """Roots of the noncentral chi-squared's upper quantiles over roots of its noncentrality."""
    grid = np.concatenate([np.linspace(0, 8, 65), np.linspace(9, 60, 18)])
    return grid, np.sqrt(np.asarray(ncx2.isf(risk, freedom, grid**2), np.float64))
