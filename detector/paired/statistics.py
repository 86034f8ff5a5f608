"""Tests of paired data: the same requests on two sides. All exact, vectorised over channels.

Paired tests are sharper than two-sample ones, because what varies from request to request cancels: only the requests on
which the two sides differ say anything.

>>> float(mcnemar(np.array([1]), np.array([9]))[0])
0.021484375
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betainc

from agent.summary.histogram import Floats, Ints
from detector.statistics.correction import benjamini_hochberg
from detector.statistics.dead import clopper_pearson_lower


def mcnemar(only_a: Ints, only_b: Ints) -> Floats:
    """Two-sided p-values for "a request is as likely to be positive on side a alone as on side b alone".

    Exact: of the discordant requests, those of one side are Binomial(discordant, 1/2) under the null. 1 where none is
    discordant. Shapes (channels,). Source: McNemar, Psychometrika 12 (1947); equals scipy.stats.binomtest at p = 1/2.
    """
    discordant = only_a + only_b
    # At 1/2 the distribution is symmetric, so both tails together are twice the smaller one.
    return np.asarray(np.minimum(1.0, 2 * bdtr(np.minimum(only_a, only_b), discordant, 0.5)), np.float64)


def above_limit(k: int, n: int, limit: float) -> float:
    """P(Binomial(n, limit) >= k): the one-sided exact p-value for "the share of requests is at most ``limit``"."""
    if k <= 0:
        return 1.0
    return float(betainc(k, n - k + 1, limit))


def share_bounds(k: Ints, n: Ints, level: float) -> tuple[Floats, Floats]:
    """Exact one-sided bounds of the share k/n, each missed with a chance of at most ``level``; (0, 1) where n is 0.

    Source: Clopper and Pearson, Biometrika 26 (1934). The lower bound is above a limit exactly where `above_limit`
    is below ``level``.
    """
    lower = clopper_pearson_lower(k, n, 1 - level)
    return lower, np.where(n > 0, 1 - clopper_pearson_lower(n - k, n, 1 - level), 1.0)


def bounds(k: int, n: int, level: float) -> tuple[float, float]:
    """`share_bounds` of one share."""
    lower, upper = share_bounds(np.array([k]), np.array([n]), level)
    return float(lower[0]), float(upper[0])


def disagreeing(only_served: Ints, only_baseline: Ints, rate: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Per channel, McNemar's p-value, and whether it stands out at a false discovery rate over all channels."""
    p_values = mcnemar(only_served, only_baseline)
    return p_values, benjamini_hochberg(p_values, rate)
