"""Paired tests against scipy's, and their error rates under the null."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from detector.paired import statistics
from detector.paired.statistics import above_limit, bounds, disagreeing, mcnemar, share_bounds

COUNTS = st.integers(0, 500)


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=8))
def test_mcnemar_is_the_exact_binomial_test(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs).T
    wanted = [binomtest(x, x + y, 0.5).pvalue if x + y else 1.0 for x, y in pairs]
    np.testing.assert_allclose(mcnemar(a, b), wanted, rtol=1e-9)


@pytest.mark.parametrize(("a", "b"), [(100_000, 101_000), (0, 2000), (10**6, 10**6 + 4000)])
def test_mcnemar_holds_for_many_requests(a: int, b: int) -> None:
    wanted = 2 * binom.cdf(min(a, b), a + b, 0.5)
    assert mcnemar(np.array([a]), np.array([b]))[0] == pytest.approx(wanted, rel=1e-6, abs=1e-300)


@given(st.integers(1, 2000), st.data(), st.floats(0.0, 0.5))
def test_above_limit_is_the_one_sided_binomial_test(n: int, data: st.DataObject, limit: float) -> None:
    k = data.draw(st.integers(0, n))
    assert above_limit(k, n, limit) == pytest.approx(binomtest(k, n, limit, "greater").pvalue, rel=1e-6, abs=1e-300)


@given(st.integers(1, 2000), st.data())
def test_bounds_are_clopper_and_pearsons(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    interval = binomtest(k, n).proportion_ci(1 - 2 * 0.001, "exact")
    assert bounds(k, n, 0.001) == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(st.integers(1, 2000), st.data(), st.floats(1e-4, 0.5))
def test_a_bound_above_the_limit_and_a_small_p_value_say_the_same(n: int, data: st.DataObject, limit: float) -> None:
    p = above_limit(k := data.draw(st.integers(0, n)), n, limit)
    if abs(p - 0.001) > 1e-6:
        assert (bounds(k, n, 0.001)[0] > limit) == (p < 0.001)


def test_nothing_compared_says_nothing() -> None:
    assert bounds(0, 0, 0.001) == (0.0, 1.0)
    assert above_limit(0, 0, 0.001) == 1.0
    lower, upper = share_bounds(np.array([0, 0]), np.array([0, 10]), 0.5)
    assert lower.tolist() == [0.0, 0.0]
    assert upper.tolist() == [1.0, pytest.approx(1 - 0.5**0.1)]


def test_error_rates_under_the_null_stay_below_the_level() -> None:
    rng = np.random.default_rng(0)
    discordant = rng.integers(0, 200, 200_000)
    a = rng.binomial(discordant, 0.5)
    p_values = mcnemar(a, discordant - a)
    for level in (0.05, 0.001):
        assert (p_values <= level).mean() <= level + 4 * np.sqrt(level / len(a))
    # The exact chance that k of n requests beyond a share of .001 are called too many.
    for n in (1, 40, 1000, 20_000):
        k = np.arange(200)
        called = [above_limit(int(i), n, 0.001) <= 0.001 for i in k if i <= n]
        assert binom.pmf(k[: len(called)], n, 0.001)[called].sum() <= 0.001 * (1 + 1e-9)


def test_channels_that_one_side_lost_stand_out_and_others_do_not() -> None:
    rng = np.random.default_rng(1)
    flips = rng.binomial(40, 0.5, 256)
    served, baseline = flips, 40 - flips
    served[7], baseline[7] = 2, 120
    p_values, stand_out = disagreeing(served, baseline, 0.001)
    assert np.flatnonzero(stand_out).tolist() == [7]
    assert p_values.argmin() == 7


def test_examples_of_the_module() -> None:
    assert doctest.testmod(statistics, extraglobs={"np": np}).failed == 0
