"""Sums of two tensors agree with numpy in float64, however they are cut; what is not finite is counted, not summed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent import wire
from agent.paired import sums
from agent.paired.sums import Tolerance, compare, top1

PROBE = wire.Probe("relu", "Relu", "t", 3, 1, "activation", 1, True)
FLOATS = st.floats(-1e3, 1e3, width=32)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 tensors (requests, 3, ...) of one shape."""
    shape = (draw(st.integers(1, 5)), 3, *draw(st.lists(st.integers(1, 4), max_size=2)))
    array = hnp.arrays(np.float32, shape, elements=FLOATS)
    return draw(array), draw(array)


@given(tensors(), st.integers(1, 20))
def test_sums_agree_with_numpy_whatever_the_chunks(pair: tuple[np.ndarray, np.ndarray], chunk: int) -> None:
    served, baseline = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "CHUNK", chunk)
        got = compare(PROBE, served, baseline, Tolerance(0.1, 0.5))
    s, b = served.astype(np.float64), baseline.astype(np.float64)
    item = got.sums
    assert (item.n, item.elements, item.nonfinite) == (len(s), s.size, 0)
    np.testing.assert_allclose(
        [item.signal, item.power, item.noise, item.cross],
        [(b * b).sum(), (s * s).sum(), ((s - b) ** 2).sum(), (s * b).sum()],
        rtol=1e-12,
        atol=1e-6,
    )
    assert item.max_abs_error == np.abs(s - b).max()
    rms = np.maximum(np.sqrt(np.square(b).reshape(len(b), -1).mean(axis=1)), 1e-6)
    limits = 0.5 * rms.reshape(-1, *[1] * (b.ndim - 1)) + 0.1 * np.abs(b)
    # Where rounding decides, either answer is right.
    close = (np.abs(np.abs(s - b) - limits) < 1e-9).reshape(len(s), -1).any(axis=1)
    rows = (np.abs(s - b) > limits).reshape(len(s), -1).any(axis=1) & ~close
    np.testing.assert_array_equal(got.mismatched & ~close, rows)
    assert item.mismatched == got.mismatched.sum()
    others = tuple(range(2, s.ndim))
    active_s, active_b = (s > 0).any(axis=others), (b > 0).any(axis=others)
    np.testing.assert_array_equal(item.only_served_active, (active_s & ~active_b).sum(axis=0))
    np.testing.assert_array_equal(item.only_baseline_active, (active_b & ~active_s).sum(axis=0))


@given(tensors(), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_a_value_that_is_not_finite_is_counted_in_its_request_and_summed_nowhere(
    pair: tuple[np.ndarray, np.ndarray], value: float, data: st.DataObject
) -> None:
    served, baseline = pair
    place = tuple(data.draw(st.integers(0, extent - 1)) for extent in served.shape)
    served[place] = value
    got = compare(PROBE, served, baseline, Tolerance(0, 1e12)).sums
    assert (got.nonfinite, got.mismatched, got.elements) == (1, 1, served.size - 1)
    served[place] = baseline[place] = 0
    clean = compare(PROBE, served, baseline, None).sums
    np.testing.assert_allclose(
        [got.signal, got.power, got.noise, got.cross],
        [clean.signal, clean.power, clean.noise, clean.cross],
        rtol=1e-12,
    )
    served[place], baseline[place] = value, -value
    both = compare(PROBE, served, baseline, Tolerance(0, 1e12)).sums
    assert (both.nonfinite, both.mismatched, both.elements) == (0, 0, served.size - 1)


def test_sums_stay_finite_for_any_double() -> None:
    served = np.array([[1e308, 1e79, 0.0]])
    got = compare(PROBE, served, -served, None).sums
    assert np.isfinite([got.signal, got.power, got.noise, got.cross, got.max_abs_error]).all()
    assert got.elements == 2, "1e308 is as good as infinite"


def test_tolerance_has_no_unit() -> None:
    baseline = np.array([[0.0, 1.0, -2.0, 3.0]])
    served = baseline + np.array([[0.05, 0, 0, 0]])
    for unit in (1e-3, 1.0, 1e6):
        assert compare(PROBE, served * unit, baseline * unit, Tolerance(0, 0.02)).sums.mismatched == 1
        assert compare(PROBE, served * unit, baseline * unit, Tolerance(0, 0.03)).sums.mismatched == 0
    zeros = np.zeros((1, 4))
    assert compare(PROBE, zeros + 1e-9, zeros, Tolerance(0, 0.02)).sums.mismatched == 0
    assert compare(PROBE, zeros + 1e-3, zeros, Tolerance(0, 0.02)).sums.mismatched == 1


def test_half_precision_is_widened_before_it_is_squared() -> None:
    served = np.full((1, 3), 60000, np.float16)
    got = compare(PROBE, served, np.zeros_like(served), None).sums
    assert got.power == pytest.approx(3 * 60000.0**2, rel=1e-3)


def test_channels_are_found_on_their_axis() -> None:
    served, baseline = np.zeros((2, 4, 3)), np.zeros((2, 4, 3))
    served[0, 1, 2] = 1
    last = wire.Probe("relu", "Relu", "t", 3, 2, "activation", 1, True)
    got = compare(last, served, baseline, None).sums
    assert got.only_served_active.tolist() == [0, 0, 1]
    assert got.only_baseline_active.tolist() == [0, 0, 0]


def test_a_tensor_without_channels_has_no_counts_of_them() -> None:
    plain = wire.Probe("score", "Output", "score", None, 0, "output", 1, False)
    got = compare(plain, np.ones(4), np.zeros(4), None).sums
    assert (got.n, got.elements, len(got.only_served_active)) == (4, 4, 0)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probe relu: shapes \(1, 3\) and \(1, 2\)"):
        compare(PROBE, np.ones((1, 3)), np.ones((1, 2)), None)


def test_top1() -> None:
    scores = np.array([[1, 3, 2], [0, 0, 0], [np.nan, 9, 0], [-np.inf, -np.inf, -5]], np.float32)
    classes, has = top1(scores)
    assert classes.tolist() == [1, 0, 1, 2]
    assert has.tolist() == [True, True, False, True]
