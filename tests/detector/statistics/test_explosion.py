"""Explosions: many requests far beyond the reference, or not finite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.summary import empty
from detector.statistics.bins import upper_quantile
from detector.statistics.explosion import explosion
from detector.statistics.sequential import calibrate
from tests.detector.fakes import rectified, summarise


def test_growth_of_all_requests_is_found() -> None:
    rng = np.random.default_rng(0)
    reference = summarise(rectified(rng, 800, 4))
    current = rectified(rng, 300, 4)
    current[:, 2] *= 100
    result = explosion(reference, summarise(current))
    assert (result.p_value < 1e-6).tolist() == [False, False, True, False]
    assert result.growth[2] > 10
    assert result.growth[0] < 3


def test_one_odd_request_pages_nobody() -> None:
    rng = np.random.default_rng(1)
    current = rectified(rng, 300, 2)
    current[0] = 1e9, np.inf
    result = explosion(summarise(rectified(rng, 800, 2)), summarise(current))
    assert result.exceeding.tolist() == [1, 0]
    assert result.nonfinite.tolist() == [0, 1]
    assert (result.p_value > 0.1).all()


def test_values_that_stop_being_finite_are_found_even_if_all_do() -> None:
    rng = np.random.default_rng(2)
    reference = summarise(rectified(rng, 800, 2))
    current = rectified(rng, 300, 2)
    current[:40, 0] = np.nan
    current[:, 1] = np.inf
    result = explosion(reference, summarise(current))
    assert (result.p_value < 1e-12).all()
    assert result.growth[1] == 0
    usual = explosion(summarise(current), summarise(current))
    assert (usual.p_value > 0.1).all()


def test_a_silent_channel_may_wake() -> None:
    reference = np.zeros((800, 2))
    reference[:, 1] = 10.0
    current = np.full((300, 2), 5.0)
    result = explosion(summarise(reference), summarise(current))
    assert (result.p_value == 1).all()
    assert result.growth[0] == pytest.approx(5.0)


def test_a_layer_that_was_silent_altogether_has_no_scale_to_grow_from() -> None:
    result = explosion(summarise(np.zeros((100, 2))), summarise(np.ones((100, 2))))
    assert (result.p_value == 1).all()
    assert (result.growth == 0).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(1, 200), st.floats(1e-6, 1e6))
def test_units_do_not_matter_and_results_are_finite(n: int, n0: int, unit: float) -> None:
    rng = np.random.default_rng(n)
    old, new = rectified(rng, n0, 3), 30 * rectified(rng, n, 3)
    plain = explosion(summarise(old), summarise(new))
    scaled = explosion(summarise(unit * old), summarise(unit * new))
    assert np.allclose(plain.growth, scaled.growth, rtol=0.1)  # of two maxima, each known to within a bucket
    assert np.isfinite(plain.growth).all()
    assert ((plain.p_value >= 0) & (plain.p_value <= 1)).all()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="3 channels with a reference of 2"):
        explosion(empty(2), empty(3))
    with pytest.raises(ValueError, match="above 1"):
        explosion(empty(2), empty(2), factor=1.0)


def test_the_tail_grows_below_an_old_record() -> None:
    """One wild request in the reference would otherwise hide all that stays below ten times its value."""
    rng = np.random.default_rng(5)
    old, new = rectified(rng, 2000, 3), rectified(rng, 500, 3)
    old[0, 1] = 1e4
    new[:50, 1] *= 100
    result = explosion(summarise(old), summarise(new), reference_risk=0.001)
    assert (result.p_value < 1e-6).tolist() == [False, True, False]
    assert result.exceeding[1] == 0
    assert result.tail_exceeding[1] >= 15
    assert result.tail_growth[1] > 5
    assert result.tail_growth[0] == 0


def test_the_quantile_is_numpys_to_a_bucket() -> None:
    rng = np.random.default_rng(6)
    values = rectified(rng, 3000, 5) - 0.3
    values[:, 0] = 0
    found = upper_quantile(summarise(values).max_histogram, 0.99)
    exact = np.quantile(values, 0.99, axis=0, method="inverted_cdf")
    assert found[0] == 0
    assert (exact[1:] <= found[1:]).all()
    assert found[1:] == pytest.approx(exact[1:], rel=0.05)
    assert upper_quantile(empty(2).max_histogram, 0.99).tolist() == [0, 0]


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_given_one_reference_healthy_heavy_tails_are_no_evidence(sigma: float) -> None:
    rng = np.random.default_rng(7)
    reference = summarise(np.repeat(rng.lognormal(0, sigma, (800, 1)), 2000, axis=1))
    result = explosion(reference, summarise(rng.lognormal(0, sigma, (400, 2000))), reference_risk=0.001)
    assert calibrate(result.p_value).mean() < 0.7
