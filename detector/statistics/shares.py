"""The active fraction: which share of a channel's positions a request activates, on average over requests.

A convolution's channel may be active in every request and yet cover less of the picture than it did. Requests are the
clusters: their variance, from the sums of a and a^2, holds whatever the correlation between the positions of one
picture is.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from agent.summary import Summary
from agent.summary.histogram import Floats
from detector.statistics.proportions import Shift, beyond

MIN_ACTIVE = 50.0
"""Active requests, after the design effect, that each side must have for the mean's normal approximation."""


def fraction_shift(
    reference: Summary,
    current: Summary,
    min_effect: float,
    design_effect: Floats | float = 1.0,
    reference_risk: float = 0.0,
) -> Shift:
    """Tests H0: the mean active fraction is within ``min_effect`` standard deviations of the reference's. Two-sided.

    Not testable where a request's fraction can only be 0 or 1, as in dense layers: there it says no more than the share
    of active requests does; nor where fewer than `MIN_ACTIVE` requests were active. ``effect`` is the distance in
    standard deviations, less what chance contributes. With a positive ``reference_risk`` the p-value holds for one
    given reference, whose mean is allowed to err by what is exceeded with that probability.
    """
    sides = []
    for side in (reference, current):
        n = np.maximum(side.finite, 1)
        mean = side.fraction_sum / n
        sides.append((n, mean, np.maximum(side.fraction_sq_sum / n - mean**2, 0)))
    (n0, mean0, variance0), (n, mean, variance) = sides
    unit = np.sqrt((variance0 + variance) / 2)
    scatter0, scatter = variance0 / n0 * design_effect, variance / n * design_effect
    if reference_risk:
        deviation, allowed = np.sqrt(scatter), -float(ndtri(reference_risk / 2)) * np.sqrt(scatter0)
    else:
        # Welch's variance alone is too small where the smaller sample, of a skewed fraction, has missed its tail.
        pooled = (n0 * variance0 + n * variance) / (n0 + n) * (1 / n0 + 1 / n) * design_effect
        deviation, allowed = np.sqrt(np.maximum(scatter0 + scatter, pooled)), np.zeros(len(n))
    active = np.minimum(reference.active, current.active) / design_effect
    graded = (reference.fraction_sum != reference.fraction_sq_sum) | (current.fraction_sum != current.fraction_sq_sum)
    testable = graded & (active >= MIN_ACTIVE) & (deviation > 1e-9)
    safe = np.where(testable, deviation, 1.0)
    z, margin = np.abs(mean - mean0) / safe, (min_effect * unit + allowed) / safe
    noise = (1 / n0 + 1 / n) * design_effect
    distance = np.abs(mean - mean0) / np.where(testable, unit, 1.0)
    return Shift(
        statistic=np.where(testable, z**2, 0.0),
        p_value=np.where(testable, beyond(z, margin), 1.0),
        effect=np.where(testable, np.sqrt(np.maximum(distance**2 - noise, 0)), 0.0),
        testable=testable,
    )
