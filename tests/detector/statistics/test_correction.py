"""Benjamini-Hochberg against scipy and by its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from detector.statistics.correction import benjamini_hochberg, e_benjamini_hochberg, reject_together, reject_together_e

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


@given(P_VALUES, st.sampled_from([0.001, 0.05, 0.2]))
def test_it_rejects_what_scipys_adjusted_p_values_do(p: list[float], rate: float) -> None:
    values = np.array(p)
    adjusted = false_discovery_control(values)
    clear = np.abs(adjusted - rate) > 1e-9  # on the very boundary rounding decides
    assert np.array_equal(benjamini_hochberg(values, rate)[clear], (adjusted <= rate)[clear])


@given(P_VALUES)
def test_a_smaller_p_value_is_never_kept_while_a_larger_is_rejected(p: list[float]) -> None:
    values = np.array(p)
    rejected = benjamini_hochberg(values, 0.1)
    if rejected.any():
        assert rejected[values <= values[rejected].max()].all()


def test_layers_are_one_family() -> None:
    p = {"conv1": np.array([0.03, 0.9]), "none": np.zeros(0), "fc1": np.array([1e-9, 1e-8, 1e-7])}
    together = reject_together(p, 0.05)
    assert {name: mask.tolist() for name, mask in together.items()} == {
        "conv1": [True, False],
        "none": [],
        "fc1": [True, True, True],
    }
    assert not reject_together({"conv1": p["conv1"]}, 0.05)["conv1"].any()
    assert reject_together({}, 0.05) == {}


def test_under_the_null_the_family_wise_error_is_the_rate() -> None:
    rng = np.random.default_rng(0)
    false = sum(benjamini_hochberg(rng.random(50), 0.05).any() for _ in range(4000))
    assert 0.04 < false / 4000 < 0.06


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, float("nan")])
def test_a_rate_outside_zero_and_one_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        benjamini_hochberg(np.array([0.5]), rate)


def test_e_values_reject_as_in_the_definition_and_under_any_dependence() -> None:
    # Wang and Ramdas (2022): the k largest, k the greatest with e_(k) >= m / (k rate).
    e = np.array([100.0, 21.0, 0.5, 39.0, 1.0])
    assert e_benjamini_hochberg(e, 0.05).tolist() == [True, False, False, False, False]
    assert e_benjamini_hochberg(e, 0.1).tolist() == [True, True, False, True, False]
    assert not e_benjamini_hochberg(np.ones(50), 0.05).any()
    rng, false = np.random.default_rng(0), 0
    for _ in range(4000):  # all channels see the same evidence: the worst case
        false += int(e_benjamini_hochberg(np.full(20, 0.5 * rng.random() ** -0.5), 0.1).any())
    assert false / 4000 <= 0.1
    with pytest.raises(ValueError, match="between 0 and 1"):
        e_benjamini_hochberg(e, 0.0)
    together = reject_together_e({"a": e[:2], "b": e[2:]}, 0.1)
    assert [mask.tolist() for mask in together.values()] == [[True, True], [False, True, False]]
    assert reject_together_e({}, 0.1) == {}
