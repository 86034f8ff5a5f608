"""Benjamini-Hochberg against scipy and by its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from detector.correction import benjamini_hochberg, reject_together

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
