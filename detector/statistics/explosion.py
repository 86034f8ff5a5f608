"""Activations that grow beyond anything the reference saw, or stop being finite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.summary import Summary
from agent.summary.histogram import Floats, Ints, bucket_index
from detector.statistics.bins import above, upper_quantile
from detector.statistics.proportions import share_above

TAIL = 0.99
"""The quantile whose growth is tested: it sees an explosion of one request in fifty, which hides below old records."""
FLOOR_SHARE = 0.1
"""Of the layer's largest reference maximum: a channel that was nearly silent may wake without having exploded."""


@dataclass(frozen=True, slots=True, eq=False)
class Explosion:
    """Arrays of shape (channels,)."""

    growth: Floats
    """Largest maximum now over the reference's; 0 where the channel has no finite positive value now."""
    tail_growth: Floats
    """The `TAIL` quantile of the maximum, now over the reference's; 0 where nothing exceeds the tail's limit."""
    exceeding: Ints
    """Requests with a maximum above ``factor`` times the reference's."""
    tail_exceeding: Ints
    """Requests with a maximum above ``factor`` times the reference's `TAIL` quantile."""
    nonfinite: Ints
    nonfinite_reference: Ints
    p_value: Floats
    """Bonferroni of the three: requests above either bound, and non-finite requests, against the reference."""
    n: Ints
    n_reference: Ints

    @property
    def grown(self) -> NDArray[np.bool_]:
        """Channels with requests beyond a limit; others may not be finite, and have grown by nothing."""
        return np.asarray((self.exceeding > 0) | (self.tail_exceeding > 0), np.bool_)


def explosion(
    reference: Summary,
    current: Summary,
    factor: float = 10.0,
    *,
    design_effect: Floats | float = 1.0,
    reference_risk: float = 0.0,
) -> Explosion:
    """Tests every channel for requests far above the reference's maximum or tail, or non-finite, beyond chance.

    A share of requests is tested, not the one largest value, so a single odd request pages nobody. The reference had
    no request above its own maximum. "Far" is ``factor`` times. ``design_effect`` divides the sample sizes;
    ``reference_risk`` is that of `drift`. Raises ValueError where the channel counts differ or factor is not above 1.
    """
    if reference.channels != current.channels:
        raise ValueError(f"cannot compare {current.channels} channels with a reference of {reference.channels}")
    if not factor > 1:
        raise ValueError(f"explosion factor must be above 1: {factor}")
    before_max, now_max = reference.highest_max, current.highest_max
    largest = np.where(np.isfinite(before_max), np.abs(before_max), 0.0)
    baseline = np.maximum(largest, FLOOR_SHARE * largest.max(initial=0.0))
    exceeding = _above(current, factor * baseline)
    known = baseline > 0
    now, before = np.full(current.channels, current.n), np.full(reference.channels, reference.n)
    share = 1 / np.asarray(design_effect, np.float64)
    p_growth = share_above(
        exceeding * share, current.finite * share, np.zeros(len(exceeding)), reference.finite * share, reference_risk
    )
    old_tail = upper_quantile(reference.max_histogram, TAIL)
    tail = np.maximum(old_tail, FLOOR_SHARE * old_tail.max(initial=0.0))
    tail_exceeding, tail_before = (_above(side, factor * tail) for side in (current, reference))
    p_tail = share_above(
        tail_exceeding * share, current.finite * share, tail_before * share, reference.finite * share, reference_risk
    )
    p_nonfinite = share_above(
        current.nonfinite * share, now * share, reference.nonfinite * share, before * share, reference_risk
    )
    return Explosion(
        growth=np.where(known, np.maximum(now_max, 0) / np.where(known, baseline, 1), 0.0),
        tail_growth=_tail_growth(current, old_tail, tail_exceeding > 0),
        exceeding=exceeding,
        tail_exceeding=tail_exceeding,
        nonfinite=current.nonfinite,
        nonfinite_reference=reference.nonfinite,
        p_value=np.minimum(1, 3 * np.minimum(np.minimum(p_growth, p_tail), p_nonfinite)),
        n=now,
        n_reference=before,
    )


def _tail_growth(current: Summary, old_tail: Floats, wanted: NDArray[np.bool_]) -> Floats:
    known = wanted & (old_tail > 0)
    if not known.any():
        return np.zeros(len(old_tail))
    return np.where(known, upper_quantile(current.max_histogram, TAIL) / np.where(known, old_tail, 1), 0.0)


def _above(summary: Summary, bound: Floats) -> Ints:
    """Maxima per channel in buckets that lie wholly above ``bound``; 0 where the bound is."""
    # As a rule no channel's largest value is above it, and there is nothing to count.
    if not ((summary.highest_max > bound) & (bound > 0)).any():
        return np.zeros(summary.channels, np.int64)
    histogram = summary.max_histogram
    limit = bucket_index(np.maximum(bound, np.finfo(np.float64).tiny), histogram.scale)
    return np.where(bound > 0, above(histogram, limit), 0)
