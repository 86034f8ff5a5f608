"""The test of the mean active fraction holds its level, also where one side has seen much less of a skewed tail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from agent.summary import Summary, empty
from detector.statistics.shares import fraction_shift

CHANNELS = 50_000
SURE = 1e-4
"""A valid test exceeds the limits below less often than this."""
POSITIONS = np.arange(50)
FRACTIONS = POSITIONS / 49
"""A layer of 7 x 7 positions: none active, one, ..., all."""


def drawn(rng: np.random.Generator, n: int, fall: float) -> Summary:
    """Channels with 90 % zeros; of the other requests each further active position is rarer by the factor ``fall``."""
    shares = np.where(POSITIONS == 0, 0.0, fall**POSITIONS)
    shares = 0.1 * shares / shares.sum()
    shares[0] = 0.9
    counts = rng.multinomial(n, shares, size=CHANNELS)
    return replace(
        empty(CHANNELS),
        n=n,
        active=n - counts[:, 0],
        fraction_sum=counts @ FRACTIONS,
        fraction_sq_sum=counts @ FRACTIONS**2,
    )


@pytest.mark.parametrize("fall", [0.5, 0.85])
@pytest.mark.parametrize(("before", "now"), [(1000, 3000), (3000, 1000), (1000, 1000)])
@pytest.mark.parametrize("level", [0.05, 1e-3])
def test_samples_of_unlike_sizes_reject_no_more_than_the_level(
    before: int, now: int, fall: float, level: float
) -> None:
    rng = np.random.default_rng(1)
    result = fraction_shift(drawn(rng, before, fall), drawn(rng, now, fall), min_effect=0.0)
    assert result.testable.all()
    rejected = int((result.p_value <= level).sum())
    assert rejected <= binom.isf(SURE, CHANNELS, level)
    assert (result.p_value <= 0.5).mean() > 0.3  # silent it is not
