"""Two-sample tests of a share of requests, vectorised over channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, ndtr, ndtri

from agent.summary.histogram import Floats, Ints
from detector.statistics.reference_error import of_the_unchanged

Counts = Ints | Floats
RARE_SHARE = 0.1
"""Below this share of the rarer outcome the normal approximation's tail is too light, and the exact test is used."""
NORMAL_COUNT = 100.0
"""Likewise for a single sample: expected counts of the rarer outcome."""


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one aspect of the channels has shifted, and how surely; arrays of shape (channels,)."""

    statistic: Floats
    """Squared z, or chi-squared."""
    p_value: Floats
    effect: Floats
    """Cohen's omega, after subtracting what chance alone contributes."""
    testable: NDArray[np.bool_]
    """Whether the data can tell anything; p is 1 where they cannot."""


def share_shift(
    k: Counts, n: Counts, k_reference: Counts, n_reference: Counts, min_effect: Floats | float = 0.0
) -> Shift:
    """Tests H0: the share k/n is within ``min_effect`` (Cohen's omega) of the reference's share.

    The null's boundary is q = p ± min_effect * sqrt(p (1 - p)). Both samples' variances are taken at the estimate
    that is restricted to that boundary (Farrington and Manning, 1990), so a share near 0 or 1 is not called shifted
    too often. Where the rarer outcome is below `RARE_SHARE` the test is the exact conditional one for two Poisson
    counts, which for binomial counts errs on the safe side. Two-sided. Counts may be fractions: those of correlated
    requests are divided by their design effect.
    """
    m, n0 = n.astype(np.float64), n_reference.astype(np.float64)
    effect = np.broadcast_to(np.asarray(min_effect, np.float64), m.shape)
    safe_n, safe_n0 = np.maximum(m, 1), np.maximum(n0, 1)
    flip = k + k_reference > (m + n0) / 2  # count the rarer outcome
    x, x0 = np.where(flip, m - k, k), np.where(flip, n0 - k_reference, k_reference)
    q, p = x / safe_n, x0 / safe_n0
    total, size = x + x0, np.maximum(m + n0, 1)
    testable = (total > 0) & (m > 0) & (n0 > 0)

    upper = q >= p
    p_null, q_null = _boundary(total, m, n0, np.where(upper, effect, -effect))
    variance = q_null * (1 - q_null) / safe_n + p_null * (1 - p_null) / safe_n0
    deviation = np.sqrt(np.maximum(variance, 1e-300))
    step = 0.5 / safe_n + 0.5 / safe_n0  # Yates: half a request, so that discreteness never rejects too often
    z, margin = np.maximum(np.abs(q - p) - step, 0) / deviation, np.abs(q_null - p_null) / deviation
    p_value = beyond(z, margin)
    rare = testable & (total < RARE_SHARE * size)
    p_value[rare] = np.minimum(1, 2 * _conditional(x[rare], total[rare], m[rare], n0[rare], p_null[rare], q_null[rare]))

    return Shift(
        statistic=np.where(testable, z**2, 0.0),
        p_value=np.where(testable, p_value, 1.0),
        effect=np.where(testable, _effect(p, q, size / (safe_n * safe_n0)), 0.0),
        testable=testable,
    )


def share_shift_given(
    k: Counts, n: Counts, k_reference: Counts, n_reference: Counts, min_effect: float, risk: float
) -> Shift:
    """`share_shift` for one given reference: H0 is a share within ``min_effect`` of what the reference's may be.

    That is Wilson's interval of the reference's share, left out with probability ``risk``, or what a share that has not
    changed may show, see `detector.statistics.reference_error`. Against its ends the test is
    binomial: exact where either outcome is expected less than `NORMAL_COUNT` times, else normal with Yates' correction.
    """
    m, n0 = n.astype(np.float64), n_reference.astype(np.float64)
    low, high = _wilson(k_reference / np.maximum(n0, 1e-300), n0, risk)
    spare = min_effect**2  # nearer to 0 or 1 than this, any share is within min_effect
    upper = np.where(high >= 1 - spare, 1.0, np.minimum(high + min_effect * np.sqrt(high * (1 - high)), 1))
    lower = np.where(low <= spare, 0.0, np.maximum(low - min_effect * np.sqrt(low * (1 - low)), 0))
    testable = (k + k_reference > 0) & (k + k_reference < m + n0) & (m > 0) & (n0 > 0)
    q, p = k / np.maximum(m, 1e-300), k_reference / np.maximum(n0, 1e-300)
    unit = np.sqrt(p * (1 - p))
    still = of_the_unchanged(unit / np.sqrt(np.maximum(n0, 1)), unit / np.sqrt(np.maximum(m, 1)))
    upper, lower = np.maximum(upper, np.minimum(p + still, 1)), np.minimum(lower, np.maximum(p - still, 0))
    rises = q >= p
    # Towards 1 as seen from the side on which the share lies.
    x, bound = np.where(rises, k, m - k), np.where(rises, upper, 1 - lower)
    expected, rest = m * bound, m * (1 - bound)
    deviation = np.sqrt(np.maximum(m * bound * (1 - bound), 1e-300))
    z, width = (x - expected - 0.5) / deviation, m * (upper - lower) / deviation
    p_value = np.where(bound >= 1, 1.0, ndtr(-z) + ndtr(-z - width))  # the second: as far out on the other side
    exact = testable & (np.minimum(expected, rest) < NORMAL_COUNT) & (bound < 1)
    p_value[exact] = 2 * _upper_tail(x[exact], m[exact], bound[exact])
    return Shift(
        statistic=np.where(testable, np.maximum(z, 0) ** 2, 0.0),
        p_value=np.where(testable, np.minimum(1, p_value), 1.0),
        effect=np.where(testable, _effect(p, q, (m + n0) / np.maximum(m * n0, 1e-300)), 0.0),
        testable=testable,
    )


def beyond(z: Floats, margin: Floats) -> Floats:
    """Two-sided p-values for "the shift is at most ``margin`` standard errors", seen at ``z`` of them, not negative."""
    return np.asarray(np.minimum(1, ndtr(margin - z) + ndtr(-margin - z)), np.float64)


def _effect(p: Floats, q: Floats, noise: Floats) -> Floats:
    """Cohen's omega of two shares, less what chance contributes."""
    middle = np.clip((p + q) / 2, 1e-300, 1)
    rarer = np.minimum(middle, 1 - middle)
    squared = (q - p) ** 2 / np.maximum(rarer * np.maximum(1 - rarer, 0.5), 1e-300)
    return np.asarray(np.sqrt(np.maximum(squared - noise, 0)), np.float64)


def _wilson(share: Floats, n: Floats, risk: float) -> tuple[Floats, Floats]:
    """Two-sided score interval of a share (Wilson, 1927)."""
    squared = float(ndtri(risk / 2)) ** 2
    size = np.maximum(n, 1e-300)
    middle = (share + squared / (2 * size)) / (1 + squared / size)
    half = np.sqrt(share * (1 - share) / size * squared + (squared / (2 * size)) ** 2) / (1 + squared / size)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def share_above(
    k: Counts,
    n: Counts,
    k_reference: Counts,
    n_reference: Counts,
    reference_risk: float = 0.0,
    tolerated: float = 0.0,
) -> Floats:
    """One-sided p-values for "the share k/n is above the reference's".

    With ``reference_risk`` 0 exact given the total, on average over references. Else exact for one given reference,
    against the upper Clopper-Pearson bound of its share at that risk, or ``tolerated`` where that is larger.
    """
    inside = (k > 0) & (n > 0) & (n_reference > 0)
    if reference_risk == 0:
        total = (k + k_reference).astype(np.float64)
        tail = _upper_tail(k.astype(np.float64), total, n / np.maximum(n + n_reference, 1) * np.ones(len(total)))
    else:
        tail = np.ones(len(inside))
        x, m, x0, n0 = (counts[inside].astype(np.float64) for counts in (k, n, k_reference, n_reference))
        bound = betaincinv(x0 + 1.0, np.maximum(n0 - x0, 1e-9), 1 - reference_risk)
        tail[inside] = _upper_tail(x, m, np.maximum(bound, tolerated))
    return np.where(inside, tail, 1.0)


def _boundary(total: Floats, n: Floats, n0: Floats, effect: Floats) -> tuple[Floats, Floats]:
    """The reference and current share on the null's boundary that reproduce the total count.

    Solves n (p + e sqrt(p (1 - p))) + n0 p = total, a quadratic in p.
    """
    size, spread = n + n0, (n * effect) ** 2
    a, b = np.maximum(size**2 + spread, 1), 2 * total * size + spread
    root = np.sqrt(np.maximum(b**2 - 4 * a * total**2, 0))
    p = np.clip((b - np.sign(effect) * root) / (2 * a), 0, 1)
    return p, np.clip(p + effect * np.sqrt(p * (1 - p)), 0, 1)


def _conditional(x: Floats, total: Floats, n: Floats, n0: Floats, p: Floats, q: Floats) -> Floats:
    """Tail of the current count given the total, towards the side on which the current share lies."""
    weight = n * q + n0 * p
    share = np.where(weight > 0, n * q / np.where(weight > 0, weight, 1), n / (n + n0))
    upper = x / n >= (total - x) / n0
    return np.where(upper, _upper_tail(x, total, share), _upper_tail(total - x, total, 1 - share))


def _upper_tail(k: Floats, total: Floats, share: Floats) -> Floats:
    """P(Binomial(total, share) >= k)."""
    inside = (k > 0) & (k <= total)
    tail = betainc(np.where(inside, k, 1), np.where(inside, total - k + 1, 1), share)
    return np.where(inside, tail, np.where(k <= 0, 1.0, 0.0))
