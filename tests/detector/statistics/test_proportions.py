"""Two-sample tests of a share against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency, fisher_exact

from detector.statistics.proportions import share_above, share_shift


def ints(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(values, np.int64)


@pytest.mark.parametrize(("k", "n", "k0", "n0"), [(40, 100, 90, 300), (250, 300, 700, 1000), (51, 100, 500, 1000)])
def test_without_an_effect_in_the_null_it_is_pearsons_test_with_yates_correction(
    k: int, n: int, k0: int, n0: int
) -> None:
    result = share_shift(ints(k), ints(n), ints(k0), ints(n0))
    oracle = chi2_contingency([[k, n - k], [k0, n0 - k0]], correction=True)
    assert result.statistic[0] == pytest.approx(oracle.statistic)
    assert result.p_value[0] == pytest.approx(oracle.pvalue)


@pytest.mark.parametrize(
    ("k", "n", "k0", "n0"), [(5, 300, 2, 800), (12, 200, 1, 900), (0, 400, 30, 1000), (9, 9, 3, 900)]
)
def test_rare_outcomes_are_never_called_more_significant_than_by_fisher(k: int, n: int, k0: int, n0: int) -> None:
    result = share_shift(ints(k), ints(n), ints(k0), ints(n0))
    exact = fisher_exact([[k, n - k], [k0, n0 - k0]]).pvalue
    assert exact <= result.p_value[0] <= 6 * exact + 1e-12


def test_rare_outcomes_follow_the_conditional_binomial() -> None:
    result = share_shift(ints(6), ints(300), ints(2), ints(800))
    oracle = binomtest(6, 8, 300 / 1100, alternative="greater").pvalue
    assert result.p_value[0] == pytest.approx(2 * oracle)


def test_a_shift_of_exactly_the_tolerated_size_is_not_significant() -> None:
    p, size = 0.3, 10**7
    q = p + 0.1 * np.sqrt(p * (1 - p))
    result = share_shift(ints(round(q * size)), ints(size), ints(round(p * size)), ints(size), min_effect=0.1)
    assert result.p_value[0] == pytest.approx(0.5, abs=0.02)
    assert result.effect[0] == pytest.approx(0.1, abs=0.003)


@given(
    n=st.integers(0, 5000),
    n0=st.integers(0, 5000),
    share=st.floats(0, 1),
    share0=st.floats(0, 1),
    effect=st.floats(0, 0.5),
)
def test_p_values_are_probabilities_and_mirroring_changes_nothing(
    n: int, n0: int, share: float, share0: float, effect: float
) -> None:
    k, k0 = int(share * n), int(share0 * n0)
    result = share_shift(ints(k), ints(n), ints(k0), ints(n0), effect)
    mirrored = share_shift(ints(n - k), ints(n), ints(n0 - k0), ints(n0), effect)
    assert 0 <= result.p_value[0] <= 1
    assert np.isfinite([result.statistic[0], result.effect[0]]).all()
    assert result.p_value[0] == pytest.approx(mirrored.p_value[0], rel=1e-6, abs=1e-12)


@given(k=st.integers(1, 400), k0=st.integers(0, 800), low=st.floats(0, 0.3), high=st.floats(0, 0.3))
def test_tolerating_more_never_lowers_the_p_value(k: int, k0: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    small, large = (share_shift(ints(k), ints(400), ints(k0), ints(800), effect) for effect in (low, high))
    assert small.p_value[0] <= large.p_value[0] * (1 + 1e-6) + 1e-9


def test_share_above_is_exact_and_one_sided() -> None:
    p = share_above(ints(10, 0, 1), ints(300, 300, 300), ints(0, 5, 0), ints(900, 900, 0))
    assert p[0] == pytest.approx(0.25**10)
    assert p[1] == 1
    assert p[2] == 1  # nothing to compare with
