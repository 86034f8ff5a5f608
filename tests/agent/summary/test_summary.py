"""The laws of the summary monoid, held by Hypothesis, and its agreement with numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from agent import summary
from agent.summary import Summary
from agent.summary import histogram as hist

VALUES = st.one_of(
    st.just(0.0),
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e-38, 2.0**-149, 3.4e38, -1.0, 1.0, 2.0, 0.5]),
)


def pooled(rows: int | None = None) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(st.integers(0, 12) if rows is None else st.just(rows), st.just(3))
    return shape.flatmap(lambda s: npst.arrays(np.float32, s, elements=VALUES))


def summarise(values: np.ndarray) -> Summary:
    with np.errstate(all="ignore"):
        return summary.from_pooled(values, values, (values > 0).astype(np.float32))


def assert_same(a: Summary, b: Summary) -> None:
    assert a.n == b.n
    for name in ("active", "nonfinite", "lowest_mean", "highest_max"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("fraction_sum", "fraction_sq_sum", "mean"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9 * _scale(a))
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-6, atol=1e-9 * _scale(a) ** 2)
    assert a.mean_histogram.same_as(b.mean_histogram)
    assert a.max_histogram.same_as(b.max_histogram)


def _scale(a: Summary) -> float:
    finite = a.highest_max[np.isfinite(a.highest_max)]
    return float(max(1.0, np.abs(a.mean).max(initial=0), np.abs(finite).max(initial=0)))


@given(pooled(), pooled())
def test_merge_equals_a_single_pass_and_commutes(a: np.ndarray, b: np.ndarray) -> None:
    merged = summary.merge(summarise(a), summarise(b))
    assert_same(merged, summarise(np.concatenate([a, b])))
    assert_same(merged, summary.merge(summarise(b), summarise(a)))


@given(pooled(), pooled(), pooled())
def test_merge_is_associative(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    x, y, z = summarise(a), summarise(b), summarise(c)
    assert_same(summary.merge(summary.merge(x, y), z), summary.merge(x, summary.merge(y, z)))


@given(pooled())
def test_empty_is_neutral(a: np.ndarray) -> None:
    assert_same(summary.merge(summary.empty(3), summarise(a)), summarise(a))
    assert_same(summary.merge(summarise(a), summary.empty(3)), summarise(a))


def test_moments_agree_with_numpy() -> None:
    values = np.random.default_rng(1).normal(size=(500, 7))
    got = summarise(values)
    np.testing.assert_allclose(got.mean, values.mean(axis=0))
    np.testing.assert_allclose(got.m2 / 500, values.var(axis=0))
    np.testing.assert_array_equal(got.active, (values > 0).sum(axis=0))


def test_nonfinite_values_are_counted_there_and_nowhere_else() -> None:
    values = np.ones((4, 3))
    values[1, 1] = np.nan
    values[2, 2] = np.inf
    got = summarise(values)
    assert got.nonfinite.tolist() == [0, 1, 1]
    assert got.active.tolist() == [4, 3, 3]
    assert got.mean.tolist() == [1, 1, 1]
    assert got.mean_histogram.totals().tolist() == [4, 3, 3]


def test_unlike_channels_do_not_merge() -> None:
    with pytest.raises(ValueError, match="3 and 2 channels"):
        summary.merge(summary.empty(3), summary.empty(2))
    with pytest.raises(ValueError, match="differ in shape"):
        summary.from_pooled(np.ones((2, 3)), np.ones((2, 3)), np.ones((1, 3)))


@given(st.floats(5e-324, 1.7e308), st.integers(-4, 8))
def test_bucket_bounds_enclose_the_value(value: float, scale: int) -> None:
    index = hist.bucket_index(np.array([value]), scale)
    exact = math.log2(value) * 2.0**scale
    assert index[0] - 1e-6 * 2.0 ** max(scale, 0) <= exact <= index[0] + 1 + 1e-6 * 2.0 ** max(scale, 0)


@pytest.mark.parametrize("scale", [-2, 0, 4, 10])
@pytest.mark.parametrize("exponent", [-1074, -1022, -3, 0, 1, 1023])
def test_powers_of_two_close_their_bucket(scale: int, exponent: int) -> None:
    index = hist.bucket_index(np.array([2.0**exponent]), scale)
    assert index[0] == math.ceil(exponent * 2.0**scale) - 1


def test_many_buckets_lower_the_scale_alike_in_any_order() -> None:
    values = np.exp(np.random.default_rng(3).normal(0, 8, (4000, 2)))
    whole = hist.from_values(values)
    assert whole.scale < hist.DEFAULT_SCALE
    assert np.bincount(whole.channel).max() <= hist.MAX_BUCKETS
    parts = [hist.from_values(part) for part in np.array_split(values, 7)]
    for order in (parts, parts[::-1]):
        merged = order[0]
        for part in order[1:]:
            merged = hist.merge(merged, part)
        assert merged.same_as(whole)


def test_refining_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot refine"):
        hist.downscale(hist.empty(1, 2), 3)
