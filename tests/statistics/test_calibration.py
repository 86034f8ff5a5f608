"""The drift test keeps its promise: p-values that are no smaller than they should be, and power where it counts.

A fast part of the calibration: 10^5 p-values per case, levels .05 and 1e-3. Limits are binomial: a valid test
exceeds one once in ten thousand runs.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, ncx2, norm

from agent.summary.histogram import Floats
from detector.statistics.bins import bin_count
from detector.statistics.correction import benjamini_hochberg
from detector.statistics.drift import drift
from detector.statistics.proportions import share_shift
from tests.statistics.draws import draw
from tests.statistics.laws import Law, at_omega, cells, hurdle
from tests.statistics.nulls import nulls
from tests.statistics.rates import rates

CHANNELS = 100_000
CHUNK = 20_000
SIZES = [(800, 300), (1000, 3000), (20_000, 20_000)]
"""Requests in the reference and in the current windows."""


def p_values(before: Law, now: Law, n0: int, n: int, min_effect: float, channels: int = CHANNELS) -> Floats:
    rng = np.random.default_rng(0)
    chunks = [(draw(before, n0, CHUNK, rng), draw(now, n, CHUNK, rng)) for _ in range(channels // CHUNK)]
    return np.concatenate([drift(old, new, min_effect).p_value for old, new in chunks])


@pytest.mark.parametrize(("n0", "n"), SIZES[:2])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 0.99])
def test_without_a_shift_the_test_of_no_effect_is_valid(zeros: float, n0: int, n: int) -> None:
    same = hurdle(zeros)
    for rate in rates(p_values(same, same, n0, n, 0.0)):
        assert rate.valid, str(rate)
        if zeros < 0.9:  # and not wastefully so; parts that agree and rare, discrete outcomes cost a little
            assert rate.rejected > 0.5 * rate.level * rate.trials, str(rate)


def test_heavy_tails_do_not_matter() -> None:
    same = hurdle(0.5, "heavy")
    for rate in rates(p_values(same, same, 800, 300, 0.0)):
        assert rate.valid, str(rate)


@pytest.mark.parametrize(("n0", "n"), SIZES)
@pytest.mark.parametrize("shape", ["alternating", "up", "down"])
def test_values_shifted_by_just_what_is_tolerated_are_not_called_drift(shape: str, n0: int, n: int) -> None:
    count = int(bin_count(np.array([n]), np.array([n0]))[0])
    before, now = cells(np.full(count, 1 / count)), cells(at_omega(0.1, count, shape))
    for rate in rates(p_values(before, now, n0, n, 0.1)):
        assert rate.valid, str(rate)
        if shape == "alternating":  # no shift of ranks, so one part of two
            assert rate.rejected > 0.4 * rate.level * rate.trials, str(rate)


@pytest.mark.parametrize(("n0", "n"), [(800, 300), (1000, 3000), (3000, 3000), (997, 211)])
@pytest.mark.parametrize("zeros", [0.02, 0.1, 0.12, 0.3, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("effect", [-0.1, 0.0, 0.1])
def test_zeros_shifted_by_just_what_is_tolerated_are_not_called_drift(
    zeros: float, effect: float, n0: int, n: int
) -> None:
    """No simulation: the rejection rate itself, summed over all outcomes of both samples."""
    before, now = binom(n0, zeros), binom(n, zeros + effect * np.sqrt(zeros * (1 - zeros)))
    k0, k = (np.arange(law.ppf(1e-9), law.isf(1e-9) + 1, dtype=np.int64) for law in (before, now))
    weight = np.outer(before.pmf(k0), now.pmf(k)).ravel()
    all_k0, all_k = (grid.ravel() for grid in np.meshgrid(k0, k, indexing="ij"))
    result = share_shift(all_k, np.full_like(all_k, n), all_k0, np.full_like(all_k0, n0), abs(effect))
    for level in (0.05, 1e-3):
        assert weight[result.p_value <= level].sum() <= level
    assert weight[result.p_value <= 1e-5].sum() <= 1.6e-5  # skewness, at shares just above the exact test's


def test_no_shift_is_hardly_ever_called_one_of_a_size_that_matters() -> None:
    same = hurdle(0.5)
    for rate in rates(p_values(same, same, 800, 300, 0.1)):
        assert rate.rejected < 0.3 * rate.limit, str(rate)


@pytest.mark.parametrize(("n0", "n"), [(800, 300), (1000, 1000), (5000, 5000)])
def test_the_power_against_a_shift_of_values_is_what_theory_allows(n0: int, n: int) -> None:
    count = int(bin_count(np.array([n]), np.array([n0]))[0])
    before, now = cells(np.full(count, 1 / count)), cells(at_omega(0.3, count, "alternating"))
    effective = n * n0 / (n + n0)
    critical = ncx2.isf(1e-3 / 2, count - 1, effective * 0.1**2)  # ranks, which tell nothing here, are tested too
    best = ncx2.sf(critical, count - 1, effective * 0.3**2)
    found = (p_values(before, now, n0, n, 0.1, channels=CHUNK) <= 1e-3).mean()
    assert found >= best - 0.03


@pytest.mark.parametrize(("n0", "n"), [(800, 400), (5000, 1000)])
def test_the_power_against_a_shift_of_zeros_where_nine_in_ten_are_zero(n0: int, n: int) -> None:
    """Nearly that of the best test that knows which part has changed."""
    deviation, spread = np.sqrt(0.9 * 0.1), 0.4
    q = 0.9 - spread * deviation
    effective = n * n0 / (n + n0)
    error = np.sqrt((q * (1 - q) / n + 0.09 / n0) * effective) / deviation
    best = norm.sf(norm.isf(1e-3 / 3) - (spread - 0.1) * np.sqrt(effective) / error)
    found = (p_values(hurdle(0.9), hurdle(q), n0, n, 0.1, channels=CHUNK) <= 1e-3).mean()
    assert found >= best - 0.1


def test_a_shift_of_values_is_found_where_nine_in_ten_are_zero() -> None:
    found = (p_values(hurdle(0.9), hurdle(0.9, stretch=2.0), 5000, 2000, 0.1, channels=CHUNK) <= 1e-3).mean()
    assert found >= 0.99


def test_healthy_checks_of_many_channels_raise_nothing() -> None:
    same, channels, false = hurdle(0.5), 500, 0
    p = p_values(same, same, 800, 300, 0.1)
    for check in p.reshape(-1, channels):
        false += int(benjamini_hochberg(check, 0.001).any())
    assert false == 0  # of 200 checks; the promise is one in a thousand


def test_requests_in_sessions_are_not_called_drift() -> None:
    """The design effect is estimated from the reference's windows, layer by layer."""
    cases = [null for null in nulls() if null.test.endswith("design effect estimated")]
    assert len(cases) > 3
    for null in cases:
        p = null.draw(2000, np.random.default_rng(0))
        for what, column in zip(null.columns, p.T, strict=True):
            for rate in rates(column):
                assert rate.valid, f"{null.name}, {what}: {rate}"
