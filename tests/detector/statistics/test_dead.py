"""Dead neurons against exact oracles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom, binom, binomtest, fisher_exact

from agent.summary import empty
from detector.statistics.dead import (
    DORMANT_FALL,
    beta_binomial_tail,
    clopper_pearson_lower,
    dead,
    label,
    likelihood_ratio,
    requests_needed,
)
from tests.detector.fakes import summarise

ints = np.array


@given(st.integers(1, 400), st.data())
def test_the_tail_is_scipys(n: int, data: st.DataObject) -> None:
    k, n0 = data.draw(st.integers(0, n)), data.draw(st.integers(1, 400))
    k0 = data.draw(st.integers(0, n0))
    tail = beta_binomial_tail(ints([k]), ints([n]), ints([k0]), ints([n0]))
    assert tail[0] == pytest.approx(betabinom.cdf(k, n, k0 + 0.5, n0 - k0 + 0.5), rel=1e-6, abs=1e-12)


def test_large_counts_are_close_to_the_exact_tail() -> None:
    k, n, k0, n0 = ints([600, 700]), ints([40_000, 30_000]), ints([20, 25]), ints([1000, 1000])
    oracle = betabinom.cdf(k, n, k0 + 0.5, n0 - k0 + 0.5)
    assert beta_binomial_tail(k, n, k0, n0) == pytest.approx(oracle, rel=0.02)


@pytest.mark.parametrize(("n", "k0", "n0"), [(300, 240, 800), (300, 20, 800), (1000, 5, 1000)])
def test_silence_is_about_as_unlikely_as_by_fisher(n: int, k0: int, n0: int) -> None:
    tail = beta_binomial_tail(ints([0]), ints([n]), ints([k0]), ints([n0]))[0]
    exact = fisher_exact([[0, n], [k0, n0 - k0]], alternative="less").pvalue
    assert 0.3 < np.log(tail) / np.log(exact) < 1.5


@pytest.mark.parametrize(("k", "n"), [(1, 10), (31, 100), (800, 800), (3, 5000)])
def test_the_lower_bound_is_clopper_and_pearsons(k: int, n: int) -> None:
    oracle = binomtest(k, n, alternative="greater").proportion_ci(0.999, "exact").low
    assert clopper_pearson_lower(ints([k]), ints([n]))[0] == pytest.approx(oracle)
    assert clopper_pearson_lower(ints([0]), ints([n]))[0] == 0


def test_requests_needed_are_the_published_ones() -> None:
    assert requests_needed(ints([0.2, 0.01, 0.001]), 1e-7).tolist() == [73, 1604, 16111]
    assert np.isinf(requests_needed(ints([0.0]), 1e-7)[0])


def activations(n: int, *active: int) -> np.ndarray:
    values = np.zeros((n, len(active)))
    for channel, count in enumerate(active):
        values[:count, channel] = 1.0
    return values


def test_the_six_labels() -> None:
    #                                    dead  new  dormant  rare  alive  revived
    reference = summarise(activations(1000, 0, 300, 600, 12, 300, 0))
    current = summarise(activations(400, 0, 0, 2, 0, 120, 50))
    result = dead(reference, current)
    labels = label(result, result.p_value < 1e-6)
    assert labels.tolist() == ["dead_at_reference", "newly_dead", "dormant", "unresolved", "alive", "alive"]
    assert label(result, result.p_value < 1e-6, result.p_revived < 1e-6)[5] == "revived"
    assert result.p_revived[:5].tolist() == [1.0] * 5
    assert result.eligible.tolist() == [False, True, True, False, True, False]


def test_too_few_requests_leave_silence_unresolved() -> None:
    reference = summarise(activations(1000, 300))
    result = dead(reference, summarise(activations(20, 0)))
    assert label(result, result.p_value < 1e-6).tolist() == ["unresolved"]
    assert label(result, np.array([False])).tolist() == ["unresolved"]
    assert 20 < requests_needed(result.lower, 1e-6)[0] < 100


def test_no_requests_say_nothing() -> None:
    result = dead(summarise(activations(1000, 300, 0)), empty(2))
    assert (result.p_value == 1).all()
    assert label(result, result.p_value < 0.5).tolist() == ["unresolved", "unresolved"]
    assert (result.rate == 0).all()


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="3 channels with a reference of 2"):
        dead(empty(2), empty(3))


@given(st.integers(50, 800), st.integers(0, 800), st.integers(1, 500))
def test_more_silence_never_weakens_the_verdict(n0: int, k0: int, n: int) -> None:
    k0 = min(k0, n0)
    reference = summarise(activations(n0, k0))
    shorter, longer = (dead(reference, summarise(activations(m, 0))).p_value[0] for m in (n, n + 50))
    assert longer <= shorter


@pytest.mark.parametrize("p", [0.001, 0.05, 0.3, 0.9])
def test_the_likelihood_ratio_is_an_e_value_and_needs_no_more_requests_than_it_says(p: float) -> None:
    n = 200
    k = np.arange(n + 1)
    e = likelihood_ratio(k, np.full(n + 1, n), np.full(n + 1, p))
    assert (binom.pmf(k, n, p) * e).sum() == pytest.approx(1)
    assert (binom.pmf(k, n, min(1, 1.1 * p)) * e).sum() < 1
    needed = int(requests_needed(ints([p]), 1e-7, DORMANT_FALL)[0])
    silent = likelihood_ratio(ints([0, 0]), ints([needed - 1, needed]), ints([p, p]))
    assert silent[0] < 1e7 <= silent[1]
    assert needed <= 1.15 * requests_needed(ints([p]), 1e-7)[0] + 1


def test_correlated_requests_prove_less() -> None:
    reference, current = summarise(activations(1000, 300)), summarise(activations(100, 0))
    alone, many = dead(reference, current), dead(reference, current, design_effect=ints([4.0]))
    assert many.lower[0] < alone.lower[0]
    assert np.log(alone.e_value[0]) / np.log(many.e_value[0]) == pytest.approx(4.6, rel=0.1)
    assert many.p_value[0] > alone.p_value[0] ** 0.3
