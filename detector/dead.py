"""Dead neurons: channels of a rectifier that no request activates any more.

A bare boolean would hide the difference between a channel that died, one that never lived, one that nearly died and
one about which too few requests are known. So each channel gets one of five labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, betaln, gammaln
from scipy.stats import beta

from agent.summary import Summary
from agent.summary.histogram import Floats, Ints

LABELS = ("dead_at_reference", "newly_dead", "dormant", "unresolved", "alive")
CONFIDENCE = 0.999
"""One-sided confidence of the reference rate's lower bound."""
DORMANT_FALL = 0.1
"""A channel is dormant when its rate is below this share of the reference rate's lower bound."""
_EXACT_COUNT = 500


@dataclass(frozen=True, slots=True, eq=False)
class Dead:
    """Arrays of shape (channels,)."""

    active: Ints
    n: Ints
    active_reference: Ints
    n_reference: Ints
    lower: Floats
    """Clopper-Pearson lower bound of the reference's active rate."""
    eligible: NDArray[np.bool_]
    """Whether the reference was active often enough for silence to mean something."""
    p_value: Floats
    """One-shot: the chance of so few active requests, given the reference. 1 where no fall is in question."""

    @property
    def rate(self) -> Floats:
        """Share of requests that activate the channel now."""
        return np.asarray(self.active / np.maximum(self.n, 1), np.float64)

    @property
    def rate_reference(self) -> Floats:
        """Share of the reference's requests that activated the channel."""
        return np.asarray(self.active_reference / np.maximum(self.n_reference, 1), np.float64)


def dead(reference: Summary, current: Summary, min_active_rate: float = 0.01) -> Dead:
    """Tests every channel's active rate against its reference. Only for probes with an exact zero.

    Raises ValueError where the channel counts differ.
    """
    if reference.channels != current.channels:
        raise ValueError(f"cannot compare {current.channels} channels with a reference of {reference.channels}")
    k, n, k0, n0 = current.active, current.finite, reference.active, reference.finite
    lower = clopper_pearson_lower(k0, n0)
    eligible = lower >= min_active_rate
    fallen = eligible & (n > 0) & (k < np.maximum(n * lower * DORMANT_FALL, 1))
    p_value = np.ones(len(k))
    p_value[fallen] = beta_binomial_tail(k[fallen], n[fallen], k0[fallen], n0[fallen])
    return Dead(k, n, k0, n0, lower, eligible, p_value)


def label(result: Dead, rejected: NDArray[np.bool_]) -> NDArray[np.str_]:
    """One of `LABELS` per channel, given which p-values the correction for all channels rejected."""
    silent = result.active == 0
    never = (result.active_reference == 0) & (result.n_reference > 0)
    conditions = [silent & never & (result.n > 0), silent & rejected, ~silent & rejected, silent]
    return np.select(conditions, LABELS[:4], default="alive")


def requests_needed(lower: Floats, level: float) -> Floats:
    """Requests without a single activation that settle, at ``level``, that a channel died: ln(level) / ln(1 - lower).

    ``level`` is the error rate divided by the number of channels; inf where ``lower`` is 0.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(np.ceil(np.log(level) / np.log1p(-np.minimum(lower, 1 - 1e-12))), np.float64)


def clopper_pearson_lower(k: Ints, n: Ints, confidence: float = CONFIDENCE) -> Floats:
    """Exact one-sided lower confidence bound of k/n; 0 where k is 0."""
    some = k > 0
    bound = betaincinv(np.where(some, k, 1), np.where(some, n - k + 1, 1), 1 - confidence)
    return np.where(some, bound, 0.0)


def beta_binomial_tail(k: Ints, n: Ints, k_reference: Ints, n_reference: Ints) -> Floats:
    """Chance of at most k active of n requests, given k_reference of n_reference and Jeffreys' prior.

    P(BetaBinomial(n, k_reference + 1/2, n_reference - k_reference + 1/2) <= k): summed exactly up to 500 terms, by a
    beta of equal mean and variance beyond.
    """
    a, b = k_reference + 0.5, n_reference - k_reference + 0.5
    tail = np.zeros(len(k))
    exact = k <= _EXACT_COUNT
    if exact.any():
        i, m, a_, b_ = k[exact], n[exact], a[exact], b[exact]
        total = np.zeros(len(i))
        for j in range(int(i.max()) + 1):
            here = j <= i
            log_choose = gammaln(m[here] + 1) - gammaln(j + 1) - gammaln(m[here] - j + 1)
            weight = betaln(a_[here] + j, b_[here] + m[here] - j) - betaln(a_[here], b_[here])
            total[here] += np.exp(log_choose + weight)
        tail[exact] = total
    if not exact.all():
        i, m, a_, b_ = k[~exact], n[~exact], a[~exact], b[~exact]
        size = a_ + b_
        spread = (size + 1) * m / (size + m) - 1  # of the beta with the beta-binomial share's mean and variance
        tail[~exact] = beta.cdf((i + 0.5) / m, a_ / size * spread, b_ / size * spread)
    return np.clip(tail, 0.0, 1.0)
