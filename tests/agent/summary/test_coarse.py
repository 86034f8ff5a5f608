"""What rests on too few requests is told no finer than a bucket tells it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import summary
from agent.summary import Summary
from agent.summary import histogram as hist
from agent.summary.coarse import coarsened, rounded_up
from tests.agent.summary.test_summary import assert_same, pooled, summarise

WIDTH = 2 ** (1 / 16)


def sparse(values: list[float], n: int) -> Summary:
    """One channel: the values, and zeros for the other requests."""
    column = np.array([*values, *[0.0] * (n - len(values))])[:, np.newaxis]
    return summary.from_pooled(column, column, (column > 0) * 0.3)


def test_the_one_value_among_zeros_cannot_be_worked_out() -> None:
    exact, told = sparse([123.456], 40), coarsened(sparse([123.456], 40), 20)
    assert exact.mean[0] * 40 == pytest.approx(123.456, rel=1e-12), "which is why"
    value = told.mean[0] * 40
    assert value == pytest.approx(123.456, rel=WIDTH - 1)
    assert value == hist.representative(told.mean_histogram)[0]
    assert told.m2[0] == pytest.approx(value**2 * (1 - 1 / 40))
    assert told.fraction_sum[0] != exact.fraction_sum[0]
    assert told.fraction_sum[0] == pytest.approx(0.3, rel=WIDTH - 1)
    assert told.fraction_sq_sum[0] == pytest.approx(told.fraction_sum[0] ** 2), "so it tells nothing more"


def test_requests_that_are_not_finite_do_not_hide_the_others_value() -> None:
    column = np.full((40, 1), np.nan)
    column[7] = 123.456
    told = coarsened(summary.from_pooled(column, column, np.ones_like(column)), 20)
    assert (told.n, told.nonfinite[0]) == (40, 39)
    assert told.mean[0] != 123.456
    assert told.mean[0] == pytest.approx(123.456, rel=WIDTH - 1)


@pytest.mark.parametrize("largest", [[0.7310585786], [0.7310585786, 0.6224593312]])
def test_values_that_outweigh_the_rest_cannot_be_worked_out(largest: list[float]) -> None:
    """A class probability of a classifier that is sure of other classes for all requests but one or two."""
    tiny = list(np.random.default_rng(0).uniform(1e-9, 1e-8, 40 - len(largest)))
    column = np.array([*largest, *tiny])[:, np.newaxis]
    exact = summary.from_pooled(column, column, np.ones_like(column))
    assert exact.mean[0] * 40 == pytest.approx(sum(largest), rel=1e-6), "which is why"
    told = coarsened(exact, 20)
    assert told.mean[0] * 40 == pytest.approx(hist.representative(exact.mean_histogram).sum(), rel=1e-6)
    assert told.mean[0] * 40 != pytest.approx(sum(largest), rel=1e-3)
    assert told.m2[0] == pytest.approx(exact.m2[0], rel=0.1)
    assert told.m2[0] != pytest.approx(exact.m2[0], rel=1e-3)


@pytest.mark.parametrize(
    "fractions",
    [[0.734], [0.734, 0.61], [*[1.0] * 24, 0.734], [*[1.0] * 24, 0.734, 0.61], [*[1e-6] * 24, 0.734]],
)
def test_the_share_that_stands_out_cannot_be_worked_out(fractions: list[float]) -> None:
    """Of a sequence or picture that is positive everywhere, or nowhere, in all requests but one or two."""
    column = np.array([*fractions, *[0.0] * (40 - len(fractions))])[:, np.newaxis]
    exact = summary.from_pooled(column, column, column)
    told = coarsened(exact, 20)
    apart = column[(column > 1e-3) & (column < 1)]
    lacking = exact.active[0] - exact.fraction_sum[0], told.active[0] - told.fraction_sum[0]
    assert told.fraction_sum[0] == pytest.approx(exact.fraction_sum[0], rel=2 ** (1 / 16) - 1)
    assert told.fraction_sum[0] != pytest.approx(exact.fraction_sum[0], rel=1e-5)
    assert lacking[1] != pytest.approx(lacking[0], rel=1e-5)
    squares = told.fraction_sq_sum[0] - (column == 1).sum()
    assert squares != pytest.approx((apart**2).sum(), rel=1e-5)


def test_enough_values_are_told_exactly() -> None:
    values = list(np.random.default_rng(0).uniform(0.5, 5, size=20))
    one = sparse(values, 40)
    told = coarsened(one, 20)
    assert (told.mean[0], told.m2[0]) == (one.mean[0], one.m2[0])
    assert (told.fraction_sum[0], told.fraction_sq_sum[0]) == (one.fraction_sum[0], one.fraction_sq_sum[0])
    assert coarsened(sparse([1.5], 40), 1).mean[0] == sparse([1.5], 40).mean[0]


def test_requests_that_are_active_in_whole_are_counted_not_rounded() -> None:
    """So that a dense layer stays one: its fractions are 0 or 1."""
    column = np.array([[1.0], [2.0], [0.0]])
    told = coarsened(summary.from_pooled(column, column, (column > 0).astype(float)), 20)
    assert told.fraction_sum[0] == told.fraction_sq_sum[0] == 2


@given(pooled(), st.integers(1, 60))
def test_counts_histograms_and_bounds_stay(values: np.ndarray, least: int) -> None:
    with np.errstate(over="ignore"):
        before = summarise(values)
        told = coarsened(before, least)
    assert_same(before, coarsened(before, 1))
    for name in ("n", "active", "nonfinite", "lowest_mean", "highest_max"):
        np.testing.assert_array_equal(getattr(told, name), getattr(before, name))
    assert told.mean_histogram is before.mean_histogram
    assert (told.m2 >= 0).all()
    assert (told.fraction_sum <= told.finite * (1 + 1e-9)).all()
    assert (told.fraction_sq_sum <= told.fraction_sum * (1 + 1e-9)).all()
    some = before.finite > 0
    assert (told.mean[some] <= np.maximum(hist.ends(before.mean_histogram)[1], 0)[some]).all()
    assert (told.mean[some] >= np.minimum(before.lowest_mean, 0)[some]).all()


@pytest.mark.parametrize("mean", [0.02, 0.3])
def test_many_rounded_sums_are_right_together(mean: float) -> None:
    """Rounding to the middles of buckets is fair: windows of few active requests add up to the truth."""
    rng = np.random.default_rng(3)
    exact = told = 0.0
    for _ in range(300):
        fraction = rng.beta(2, 2 / mean - 2, size=(25, 8)) * (rng.random((25, 8)) < 0.2)
        one = summary.from_pooled(fraction, fraction, fraction)
        rounded = coarsened(one, 20)
        exact += one.fraction_sum.sum()
        told += rounded.fraction_sum.sum()
    assert told == pytest.approx(exact, rel=2e-3)


@given(st.floats(1e-300, 1e300))
def test_rounded_up_is_the_end_of_the_bucket(value: float) -> None:
    assert value * (1 - 1e-12) <= rounded_up(value) <= value * WIDTH * (1 + 1e-12)
    assert rounded_up(0.0) == 0.0


@given(pooled())
def test_the_ends_of_a_histogram_enclose_its_values(values: np.ndarray) -> None:
    one = summarise(values)
    finite = np.where(np.isfinite(values), values, np.nan)
    for channel in range(values.shape[1]):
        column = finite[:, channel][~np.isnan(finite[:, channel])]
        low, high = one.lowest_mean[channel], one.highest_max[channel]
        if not len(column):
            assert (low, high) == (np.inf, -np.inf)
            continue
        assert low <= column.min()
        assert column.max() <= high
        width = 2 ** (2.0**-one.mean_histogram.scale)
        most = 1 + 1e-12
        assert abs(high) <= abs(float(column.max())) * width * most or high == 0
        assert abs(low) <= abs(float(column.min())) * width * most or low == 0


def test_a_bucket_that_ends_beyond_a_double_ends_at_the_largest() -> None:
    largest = float(np.finfo(np.float64).max)
    low, high = hist.ends(hist.from_values(np.array([[largest, -largest]])))
    assert (high[0], low[1]) == (largest, -largest)


def test_the_largest_values_stay_usable() -> None:
    """The middle of their bucket lies above what counts as finite."""
    told = coarsened(sparse([summary.LARGEST, -summary.LARGEST], 30), 20)
    assert summary.usable(told) is told
