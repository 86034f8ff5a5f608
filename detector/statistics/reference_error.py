"""What a frozen reference may err by, so that all windows of a model's life can be held against it.

A reference that errs in a channel by more than the tests allow for is evidence in every window, for ever. Two errors
are allowed for, and the larger counts:

- *A channel that sits exactly at min_effect* must be covered but in a share `REFERENCE_RISK` of references: there the
  reference's error comes on top of min_effect.
- *A channel that has not changed at all* must be covered but in a share `UNCHANGED_RISK`, for a model has thousands of
  them and not one may page. Beside large references min_effect alone covers that. A channel with few values in its
  reference needs more; less by what windows may err themselves before evidence grows.

So a page's budget holds on average over references where nothing has changed. It is conditional on the reference, but
for one in twenty, only where a channel has shifted by just what is tolerated.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import ndtri
from scipy.stats import chi2

from agent.summary.histogram import Floats

REFERENCE_RISK = 0.05
"""Chance, per channel at min_effect, that the reference's own error is larger than checks allow for."""
UNCHANGED_RISK = 1e-5
"""The same of a channel that has not changed. At one in ten thousand every tenth model of a thousand sparse channels
would have one whose evidence grows in windows that are larger than its reference."""
SLACK = 0.4
"""Standard errors of a window, beyond the margin, up to which a shift is no evidence over time: where p is uniform the
evidence falls by a fifth in a typical window, and only a shift of so much makes up for it."""


def of_the_unchanged(error: Floats, window_error: Floats) -> Floats:
    """Distance from the reference that a channel which has not changed may show, less `SLACK`; may be negative.

    ``error`` and ``window_error`` are the standard errors of the reference and of a window. Two-sided.
    """
    return np.asarray(-float(ndtri(UNCHANGED_RISK / 2)) * error - SLACK * window_error, np.float64)


@cache
def root_of_the_unchanged(freedom: int) -> float:
    """The same for chi-squared with so many degrees of freedom: the root of the quantile, in the reference's errors."""
    return float(np.sqrt(chi2.isf(UNCHANGED_RISK, freedom)))
