"""The active fraction: which share of a channel's positions a request activates, on average over requests.

A convolution's channel may be active in every request and yet cover less of the picture than it did. Requests are the
clusters: their variance, from the sums of a and a^2, holds whatever the correlation between the positions of one
picture is.

A channel that is on but for one request in a hundred has nearly all of its variance from that one, and a window that
happens to miss it seems hardly to vary. So the variance is never the window's alone, but the larger of the reference's
and the window's. With a variance that is at least a third of the window's own and two thirds of the law's, sums of
independent values of *any* law fall off as the normal law's do: where exceptions are rare and the law is skewed, those
that a window holds raise its own variance, and those that it lacks are in the reference's.
Source: Delyon, Electronic Journal of Probability 14 (2009), theorem 4.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from agent.summary import Summary
from agent.summary.histogram import Floats
from detector.statistics.proportions import Shift, beyond
from detector.statistics.reference_error import of_the_unchanged

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
    given reference, whose mean is allowed to err by what is exceeded with that probability, see `_error`.
    """
    sides = []
    for side in (reference, current):
        n = np.maximum(side.finite, 1)
        mean = side.fraction_sum / n
        sides.append((n, mean, np.maximum(side.fraction_sq_sum / n - mean**2, 0)))
    (n0, mean0, variance0), (n, mean, variance) = sides
    unit = np.sqrt((variance0 + variance) / 2)
    distance = np.abs(mean - mean0)
    if reference_risk:
        deviation = np.sqrt(np.maximum(variance0, variance) / n * design_effect)
        room = np.where(mean >= mean0, 1 - mean0, mean0)
        margin = np.maximum(
            min_effect * unit + _error(variance0, room, n0 / design_effect, reference_risk),
            of_the_unchanged(np.sqrt(variance0 / n0 * design_effect), deviation),
        )
    else:
        # Welch's variance alone is too small where the smaller sample, of a skewed fraction, has missed its tail.
        welch = (variance0 / n0 + variance / n) * design_effect
        pooled = (n0 * variance0 + n * variance) / (n0 + n) * (1 / n0 + 1 / n) * design_effect
        deviation, margin = np.sqrt(np.maximum(welch, pooled)), min_effect * unit
    active = np.minimum(reference.active, current.active) / design_effect
    graded = (reference.fraction_sum != reference.fraction_sq_sum) | (current.fraction_sum != current.fraction_sq_sum)
    testable = graded & (active >= MIN_ACTIVE) & (deviation > 1e-9)
    safe = np.where(testable, deviation, 1.0)
    z = distance / safe
    noise = (1 / n0 + 1 / n) * design_effect
    far = distance / np.where(testable, unit, 1.0)
    return Shift(
        statistic=np.where(testable, z**2, 0.0),
        p_value=np.where(testable, beyond(z, margin / safe), 1.0),
        effect=np.where(testable, np.sqrt(np.maximum(far**2 - noise, 0)), 0.0),
        testable=testable,
    )


def _error(variance: Floats, room: Floats, n: Floats, risk: float) -> Floats:
    """How far the law's mean may lie beyond that of a sample of ``n``, exceeded with probability ``risk``, two-sided.

    Wilson's score interval for fractions: the farther the mean lies beyond, the more exceptions must the sample have
    missed, of the size of ``room`` at most, and with them variance. So e^2 = z^2 (variance + e * room) / n.
    """
    squared = float(ndtri(risk / 2)) ** 2 / n
    missed = squared * room / 2
    return np.asarray(missed + np.sqrt(missed**2 + squared * variance), np.float64)
