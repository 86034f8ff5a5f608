"""The test of the mean active fraction holds its level, also where one side has seen much less of a skewed tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from agent.summary import Summary, empty
from detector.statistics.sequential import calibrate
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


def summarised(fractions: NDArray[np.floating]) -> Summary:
    """Of fractions, shape (channels, requests)."""
    return replace(
        empty(len(fractions)),
        n=fractions.shape[1],
        active=(fractions > 0).sum(axis=1),
        fraction_sum=fractions.sum(axis=1),
        fraction_sq_sum=(fractions**2).sum(axis=1),
    )


def repeated(one: Summary, channel: int, times: int) -> Summary:
    """One channel many times, to be compared with as many windows."""
    return replace(
        empty(times),
        n=one.n,
        active=np.full(times, one.active[channel]),
        fraction_sum=np.full(times, one.fraction_sum[channel]),
        fraction_sq_sum=np.full(times, one.fraction_sq_sum[channel]),
    )


def test_a_window_that_missed_the_rare_exceptions_is_no_evidence() -> None:
    """On almost everywhere, and off in 1.8 % of the reference's requests; the window holds none of these."""
    rng = np.random.default_rng(0)
    before, now = (1 - rng.gamma(0.3, 0.002, (1, n)) for n in (1000, 200))
    before[0, :18] = 0.0
    assert fraction_shift(summarised(before), summarised(now), 0.1, reference_risk=0.05).p_value[0] > 0.1


LAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[np.floating]]] = {
    "off in 1.3 %": lambda rng, shape: np.where(rng.random(shape) < 0.013, 0.1, 1 - rng.gamma(0.3, 0.002, shape)),
    "off in 5 %": lambda rng, shape: np.where(rng.random(shape) < 0.05, 0.1, 1 - rng.gamma(0.3, 0.002, shape)),
    "on in 1 %": lambda rng, shape: np.where(rng.random(shape) < 0.01, 0.95, 0.3 * rng.random(shape)),
    "both ends": lambda rng, shape: 0.5 + 0.5 * ((rng.random(shape) < 0.02) * 1.0 - (rng.random(shape) < 0.005)),
    "mostly full": lambda rng, shape: rng.beta(3.0, 0.05, shape),
    "U-shaped": lambda rng, shape: rng.beta(0.05, 0.05, shape),
    "heavy": lambda rng, shape: np.minimum(0.01 * np.exp(2 * rng.normal(size=shape)), 1),
    "narrow": lambda rng, shape: rng.beta(20, 50, shape),
}


@pytest.mark.parametrize(("before", "now"), [(1000, 200), (1000, 4000), (200, 400)])
@pytest.mark.parametrize("law", LAWS)
def test_evidence_does_not_grow_against_any_reference_while_nothing_changes(law: str, before: int, now: int) -> None:
    """For each of forty references, the mean e-value of the windows that are compared with it."""
    rng = np.random.default_rng(3)
    references, windows = summarised(LAWS[law](rng, (40, before))), summarised(LAWS[law](rng, (300, now)))
    for channel in range(40):
        one = repeated(references, channel, 300)
        e = calibrate(fraction_shift(one, windows, 0.1, reference_risk=0.05).p_value)
        assert e.mean() <= 1, f"reference {channel}: {e.mean()}"


@pytest.mark.parametrize("shift", [0.5, -0.5])
@pytest.mark.parametrize("law", ["narrow", "off in 5 %"])
def test_a_shift_of_the_fraction_is_still_found(law: str, shift: float) -> None:
    rng = np.random.default_rng(4)
    before, now = LAWS[law](rng, (300, 5000)), LAWS[law](rng, (300, 400))
    if law == "narrow":
        now = now + shift * before.std()
    else:  # off more often, or less far on
        now = np.where(rng.random(now.shape) < 0.15, 0.1, now) if shift < 0 else np.maximum(now - 0.3, 0)
    result = fraction_shift(summarised(before), summarised(now), 0.1, reference_risk=0.05)
    assert (result.p_value < 1e-5).mean() >= 0.9
