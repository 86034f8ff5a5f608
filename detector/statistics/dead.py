"""Dead neurons: channels of a rectifier that no request activates any more.

A bare boolean would hide the difference between a channel that died, one that never lived, one that nearly died, one
that came to life and one about which too few requests are known. So each channel gets one of six labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, betaln, gammaln
from scipy.stats import beta

from agent.summary import Summary
from agent.summary.histogram import Floats, Ints
from detector.statistics.proportions import Counts, share_above

LABELS = ("dead_at_reference", "newly_dead", "dormant", "unresolved", "revived", "alive")
CONFIDENCE = 0.999
"""One-sided confidence of the reference rate's lower bound."""
DORMANT_FALL = 0.1
"""A channel is dormant when its rate is below this share of the reference rate's lower bound. The sequential test's
alternative is this rate too."""
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
    fallen: NDArray[np.bool_]
    """Eligible, and silent now or below `DORMANT_FALL` of the lower bound."""
    p_value: Floats
    """One-shot: the chance of so few active requests, given the reference. 1 where no fall is in question."""
    e_value: Floats
    """Likelihood ratio of "nearly dead" to "as active as the reference at least was"; 0 where not eligible."""
    p_revived: Floats
    """One-shot, where the reference was silent: the chance of so many active requests. 1 elsewhere."""
    design_effect: Floats
    """Requests that prove as much as one independent request does."""

    @property
    def rate(self) -> Floats:
        """Share of requests that activate the channel now."""
        return np.asarray(self.active / np.maximum(self.n, 1), np.float64)

    @property
    def rate_reference(self) -> Floats:
        """Share of the reference's requests that activated the channel."""
        return np.asarray(self.active_reference / np.maximum(self.n_reference, 1), np.float64)


def dead(
    reference: Summary, current: Summary, min_active_rate: float = 0.01, *, design_effect: Floats | float = 1.0
) -> Dead:
    """Tests every channel's active rate against its reference. Only for probes with an exact zero.

    ``design_effect`` divides the sample sizes: silence of correlated requests proves less. Raises ValueError where the
    channel counts differ.
    """
    if reference.channels != current.channels:
        raise ValueError(f"cannot compare {current.channels} channels with a reference of {reference.channels}")
    k, n, k0, n0 = current.active, current.finite, reference.active, reference.finite
    lower = clopper_pearson_lower(k0 / design_effect, n0 / design_effect)
    eligible = lower >= min_active_rate
    fallen = eligible & (n > 0) & (k < np.maximum(n * lower * DORMANT_FALL, 1))
    p_value = np.ones(len(k))
    share = np.broadcast_to(1 / np.asarray(design_effect, np.float64), k.shape)
    p_value[fallen] = beta_binomial_tail(
        np.ceil(k * share)[fallen].astype(np.int64), (n * share)[fallen], (k0 * share)[fallen], (n0 * share)[fallen]
    )
    back = (k0 == 0) & (n0 > 0) & (k > 0)
    p_revived = np.ones(len(k))
    p_revived[back] = share_above(*(counts[back] * share[back] for counts in (k, n, k0, n0)))
    return Dead(
        active=k,
        n=n,
        active_reference=k0,
        n_reference=n0,
        lower=lower,
        eligible=eligible,
        fallen=fallen,
        p_value=p_value,
        e_value=np.where(eligible, likelihood_ratio(k * share, n * share, lower), 0.0),
        p_revived=p_revived,
        design_effect=1 / share,
    )


def label(result: Dead, rejected: NDArray[np.bool_], revived: NDArray[np.bool_] | None = None) -> NDArray[np.str_]:
    """One of `LABELS` per channel, given which channels' falls, and revivals, the correction found sure."""
    silent = result.active == 0
    never = (result.active_reference == 0) & (result.n_reference > 0)
    back = never & ~silent & (np.False_ if revived is None else revived)
    conditions = [silent & never & (result.n > 0), silent & rejected, ~silent & rejected, silent, back]
    return np.select(conditions, LABELS[:5], default="alive")


def requests_needed(
    lower: Floats, level: float, alternative: float = 0.0, design_effect: Floats | float = 1.0
) -> Floats:
    """Requests without a single activation that settle, at ``level``, that a channel died.

    design_effect * ln(level) / ln((1 - lower) / (1 - alternative * lower)). ``level`` is the error rate divided by the
    number of channels; ``alternative`` is `DORMANT_FALL` for the sequential test, 0 for the one-shot bound. Inf where
    ``lower`` is 0.
    """
    bound = np.minimum(lower, 1 - 1e-12)
    with np.errstate(divide="ignore"):
        independent = np.log(level) / (np.log1p(-bound) - np.log1p(-alternative * bound))
    return np.asarray(np.ceil(design_effect * independent), np.float64)


def likelihood_ratio(k: Counts, n: Counts, lower: Floats) -> Floats:
    """(p1 / p)^k ((1 - p1) / (1 - p))^(n - k) with p = ``lower`` and p1 = `DORMANT_FALL` * p.

    Its mean is at most 1 wherever the rate is ``lower`` or above, whatever is known of the past. Overflow is inf.
    """
    p = np.clip(lower, 1e-12, 1 - 1e-12)
    dead_rate = DORMANT_FALL * p
    with np.errstate(over="ignore"):
        return np.asarray(
            np.exp(k * np.log(DORMANT_FALL) + (n - k) * (np.log1p(-dead_rate) - np.log1p(-p))), np.float64
        )


def clopper_pearson_lower(k: Counts, n: Counts, confidence: float = CONFIDENCE) -> Floats:
    """Exact one-sided lower confidence bound of k/n; 0 where k is 0."""
    some = k > 0
    # The inverse is slow, and a layer's channels share few pairs of counts.
    pairs, inverse = np.unique(np.where(some, k + 1j * n, 1 + 1j), return_inverse=True)
    bound = betaincinv(pairs.real, pairs.imag - pairs.real + 1, 1 - confidence)[inverse]
    return np.where(some, bound, 0.0)


def beta_binomial_tail(k: Ints, n: Counts, k_reference: Counts, n_reference: Counts) -> Floats:
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
