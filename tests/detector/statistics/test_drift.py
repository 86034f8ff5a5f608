"""The drift test, its bins and its effect sizes against scipy, and laws that hold for any data."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import binom, chi2, chi2_contingency, mannwhitneyu, ncx2, ttest_ind, wasserstein_distance

from agent.summary import Summary, empty, from_pooled, merge
from agent.summary.histogram import downscale, from_values
from detector.statistics.bins import MAX_BINS, MIN_EXPECTED, bin_count, common_bins, merge_sparse, wasserstein
from detector.statistics.drift import PARTS, Drift, drift, normed_wasserstein
from detector.statistics.reference_error import REFERENCE_RISK
from detector.statistics.sequential import calibrate
from detector.statistics.values import chi_squared, ncx2_tail, rank_shift, tolerance
from tests.detector.fakes import rectified, summarise

RNG = np.random.default_rng
ZEROS, VALUES, RANK, FRACTION = range(len(PARTS))


def binned(reference: Summary, current: Summary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    old, new = reference.mean_histogram, current.mean_histogram
    bins = bin_count(new.totals() - new.zeros, old.totals() - old.zeros)
    return merge_sparse(*common_bins(old, new, bins))


def test_with_equal_sizes_and_no_tolerance_it_is_the_chi_squared_test_of_homogeneity() -> None:
    rng = RNG(1)
    old, new = rectified(rng, 900, 6, zeros=0), rectified(rng, 900, 6, zeros=0, scale=1.1)
    reference, current = summarise(old), summarise(new)
    result = drift(reference, current, min_effect=0)
    p_counts, q_counts, bins = binned(reference, current)
    for channel in range(6):
        table = np.array([p_counts[channel, : bins[channel]], q_counts[channel, : bins[channel]]])
        oracle = chi2_contingency(table, correction=False)
        statistic = chi_squared(p_counts, q_counts, bins, 0.0, np.ones(6), 0.0).statistic[channel]
        assert statistic == pytest.approx(oracle.statistic * (1 - 1 / 900))  # the correction for small samples
        assert result.p_parts[channel, VALUES] == pytest.approx(oracle.pvalue, rel=0.02)


def test_unequal_sizes_agree_with_the_chi_squared_test_to_a_few_per_cent() -> None:
    rng = RNG(2)
    reference, current = summarise(rectified(rng, 800, 200, zeros=0)), summarise(rectified(rng, 300, 200, zeros=0))
    p_counts, q_counts, bins = binned(reference, current)
    result = chi_squared(p_counts, q_counts, bins, 0.0, np.ones(200), 0.0)
    oracle = [
        chi2_contingency(np.array([p[:b], q[:b]]), correction=False).statistic
        for p, q, b in zip(p_counts, q_counts, bins, strict=True)
    ]
    assert np.mean(result.statistic) == pytest.approx(np.mean(oracle), rel=0.03)


def test_bins_hold_equal_shares_of_the_reference_and_every_value() -> None:
    rng = RNG(3)
    reference, current = summarise(rectified(rng, 2000, 5)), summarise(rectified(rng, 500, 5, scale=3))
    old, new = reference.mean_histogram, current.mean_histogram
    p, q = common_bins(old, new, np.full(5, 8))
    assert np.array_equal(p.sum(axis=1), old.totals() - old.zeros)
    assert np.array_equal(q.sum(axis=1), new.totals() - new.zeros)
    assert not p[:, 8:].any()
    shares = p[:, :8] / p.sum(axis=1)[:, None]
    assert np.abs(shares - 1 / 8).max() < 0.06  # buckets are whole: 4.4 % wide


def test_bins_follow_the_order_of_values_across_zero() -> None:
    reference = from_values(np.array([[-4.0], [-2.0], [-1.0], [1.0], [2.0], [4.0]]))
    current = from_values(np.array([[-8.0], [-3.0], [0.0], [3.0], [8.0]]))
    p, q = common_bins(reference, current, np.array([6]))
    assert p[0, :6].tolist() == [1] * 6
    assert q[0, :6].tolist() == [1, 1, 0, 0, 0, 2]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=MAX_BINS, max_size=MAX_BINS))
def test_merging_sparse_bins_keeps_counts_and_fills_every_bin(counts: list[tuple[int, int]]) -> None:
    p, q = (np.array(column, np.int64)[None, :] for column in zip(*counts, strict=True))
    left, right, bins = merge_sparse(p, q)
    assert (left.sum(), right.sum()) == (p.sum(), q.sum())
    if bins[0] > 1:
        pooled = (left + right)[0, : bins[0]]
        assert (pooled * min(p.sum(), q.sum()) / (p.sum() + q.sum()) >= MIN_EXPECTED - 1e-9).all()


def test_bins_grow_with_the_samples() -> None:
    n = np.array([0, 20, 300, 10**4, 10**6])
    assert bin_count(n, np.full(5, 800)).tolist() == [2, 3, 6, 9, 9]
    assert bin_count(n, n).tolist() == [2, 2, 5, 16, 16]


def test_wasserstein_and_jensen_shannon_agree_with_scipy() -> None:
    rng = RNG(4)
    old, new = rectified(rng, 4000, 3), rectified(rng, 3000, 3, zeros=0.3, scale=1.5)
    old -= 0.5  # negative values too
    reference, current = summarise(old), summarise(new)
    channels = np.arange(3)
    distance = normed_wasserstein(reference, current, channels)
    for channel in channels:
        exact = wasserstein_distance(old[:, channel], new[:, channel]) / old[:, channel].std()
        assert distance[channel] == pytest.approx(exact, rel=0.02)
    p, q, _ = binned(reference, current)
    zeros = [s.mean_histogram.zeros[:, None] for s in (reference, current)]
    oracle = jensenshannon(np.hstack([zeros[0], p]), np.hstack([zeros[1], q]), base=2, axis=1)
    assert drift(reference, current).jensen_shannon == pytest.approx(oracle)


def test_wasserstein_of_a_pure_shift_is_the_shift() -> None:
    a, b = (from_values(np.full((10, 1), value)) for value in (1.0, 4.0))
    assert wasserstein(a, b, np.array([0]))[0] == pytest.approx(3.0, rel=0.03)
    assert wasserstein(a, from_values(np.full((10, 1), np.nan)), np.array([0]))[0] == 0


def test_a_meaningless_shift_stays_silent_with_a_million_requests() -> None:
    rng = RNG(5)
    old, new = rng.normal(10, 1, (500_000, 1)), rng.normal(10.01, 1, (500_000, 1))
    result = drift(summarise(old), summarise(new))
    assert result.p_value[0] > 0.9


@pytest.mark.parametrize("moved", [0.125, 0.5])
def test_a_constant_channel_that_moves_is_found(moved: float) -> None:
    reference, current = summarise(np.full((500, 1), 0.25)), summarise(np.full((300, 1), moved))
    assert drift(reference, current).p_value[0] < 1e-12
    expected = abs(moved - 0.25) / 0.25  # it does not vary, so its size is the unit
    assert normed_wasserstein(reference, current, np.array([0]))[0] == pytest.approx(expected, rel=0.05)


def test_zeros_and_values_are_judged_apart() -> None:
    rng = RNG(6)
    base = summarise(rectified(rng, 3000, 1, zeros=0.9))
    quieter = drift(base, summarise(rectified(rng, 1500, 1, zeros=0.8)))
    louder = drift(base, summarise(rectified(rng, 1500, 1, zeros=0.9, scale=2)))
    assert quieter.p_parts[0, ZEROS] < 1e-6 < 1e-3 < quieter.p_parts[0, VALUES]
    assert louder.p_parts[0, VALUES] < 1e-6 < 1e-3 < louder.p_parts[0, ZEROS]
    assert louder.effect[0] > 0.3


def test_the_rank_test_is_wilcoxons_on_grouped_values() -> None:
    rng = RNG(11)
    old, new = rng.gamma(2, size=(900, 40)), rng.gamma(2, size=(700, 40)) * 1.05
    result = drift(summarise(old), summarise(new), min_effect=0)
    oracle = mannwhitneyu(old, new).pvalue
    # Bins cost a little information, so single p-values differ a little.
    assert np.corrcoef(np.log(result.p_parts[:, RANK]), np.log(oracle))[0, 1] > 0.97
    assert np.median(np.log10(result.p_parts[:, RANK])) == pytest.approx(np.median(np.log10(oracle)), abs=0.2)


def test_a_smooth_shift_shows_in_the_ranks_first_and_a_wider_spread_in_the_values_alone() -> None:
    rng = RNG(12)
    reference = summarise(rng.gamma(2, size=(4000, 30)))
    louder = drift(reference, summarise(rng.gamma(2, size=(2000, 30)) * 1.1), min_effect=0)
    assert np.median(louder.p_parts[:, RANK]) < np.median(louder.p_parts[:, VALUES]) / 5
    assert np.median(louder.effect) == pytest.approx(0.13, abs=0.03)
    wider = drift(reference, summarise(rng.gamma(1, 2, size=(600, 30))))
    assert np.median(wider.p_parts[:, VALUES]) < 1e-3 < np.median(wider.p_parts[:, RANK])


@given(st.lists(st.tuples(st.integers(5, 60), st.integers(0, 60)), min_size=3, max_size=MAX_BINS))
def test_the_mean_rank_never_moves_further_than_omega(counts: list[tuple[int, int]]) -> None:
    """Which is why both tests of the values share one null."""
    p, q = (np.array(column, np.float64)[None, :] for column in zip(*counts, strict=True))
    if not q.sum():
        return
    bins = np.array([len(counts)])
    share, now = p / p.sum(), q / q.sum()
    omega = float(np.sqrt(((now - share) ** 2 / share).sum()))
    # The p-value at a tolerance of omega is that of a mean rank inside the null: at least one half, two-sided.
    assert rank_shift(p, q, bins, omega, np.ones(1), 0.0).p_value[0] >= 0.5 - 1e-9


def test_outputs_are_judged_by_their_negative_values_too() -> None:
    rng = RNG(7)
    old, new = rng.normal(-3, 1, (800, 2)), rng.normal([-3, -2.4], 1, (400, 2))
    result = drift(summarise(old), summarise(new))
    assert result.p_value[0] > 1e-3
    assert result.p_value[1] < 1e-6


def test_the_far_tail_is_a_probability() -> None:
    p = ncx2_tail(np.array([1.0, 1e4, 1e6]), np.array([7, 7, 15]), np.array([0.0, 2.0, 1e4]))
    assert p.tolist() == [pytest.approx(ncx2.sf(1, 7, 0)), 0.0, 0.0]


def test_nothing_is_found_in_nothing() -> None:
    some = summarise(rectified(RNG(8), 100, 3))
    for pair in ((some, empty(3)), (empty(3), some), (empty(3), empty(3))):
        result = drift(*pair)
        assert (result.p_value == 1).all()
        assert_finite(result)


def test_other_channel_counts_and_negative_tolerances_are_refused() -> None:
    with pytest.raises(ValueError, match="3 channels with a reference of 2"):
        drift(empty(2), empty(3))
    with pytest.raises(ValueError, match="min_effect"):
        drift(empty(2), empty(2), min_effect=-0.1)


def assert_finite(result: Drift) -> None:
    for entry in fields(result):
        assert np.isfinite(getattr(result, entry.name)).all(), entry.name


values = st.one_of(st.just(0.0), st.floats(-1e6, 1e6), st.sampled_from([np.nan, np.inf, 1e-300, 1e300]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(values, values), max_size=40), st.lists(st.tuples(values, values), max_size=40))
def test_any_data_gives_finite_results_and_the_order_of_shards_does_not_matter(
    before: list[tuple[float, float]], after: list[tuple[float, float]]
) -> None:
    old, new = (np.array(rows, np.float64).reshape(-1, 2) for rows in (before, after))
    result = drift(summarise(old), summarise(new))
    assert_finite(result)
    assert ((result.p_value >= 0) & (result.p_value <= 1)).all()
    half = len(new) // 2
    sharded = drift(summarise(old), merge(summarise(new[half:]), summarise(new[:half])))
    assert np.array_equal(result.p_value, sharded.p_value)


def test_histograms_of_unlike_scale_are_compared_at_the_coarser() -> None:
    rng = RNG(9)
    old, new = rectified(rng, 800, 2), rectified(rng, 400, 2)
    fine = from_pooled(old, old, np.sign(old), scale=6)
    p, q = common_bins(fine.mean_histogram, from_values(new, 3), np.array([6, 6]))
    coarse = common_bins(downscale(fine.mean_histogram, 3), from_values(new, 3), np.array([6, 6]))
    assert np.array_equal(p, coarse[0])
    assert np.array_equal(q, coarse[1])


def pictures(rng: np.random.Generator, n: int, covered: float) -> Summary:
    """Every picture activates some of 49 positions, so only the active fraction can tell."""
    active = np.clip(rng.normal(covered, 0.1, (n, 3)), 0.02, 1)
    mean = rng.gamma(2, size=(n, 3))
    return from_pooled(mean, mean, active)


def test_a_picture_that_is_covered_less_is_found_though_every_request_is_active() -> None:
    rng = RNG(8)
    result = drift(pictures(rng, 2000, 0.5), pictures(rng, 500, 0.45))
    assert [PARTS[part] for part in result.part] == ["active fraction"] * 3
    assert (result.p_value < 1e-6).all()
    assert result.effect == pytest.approx([0.5] * 3, abs=0.12)
    same = drift(pictures(rng, 2000, 0.5), pictures(rng, 500, 0.5), min_effect=0)
    assert (same.p_parts[:, FRACTION] > 0.01).all()


def test_the_active_fraction_agrees_with_the_t_tests_and_is_left_out_where_it_is_all_or_nothing() -> None:
    rng = RNG(9)
    a, b = rng.beta(2, 5, (800, 50)), rng.beta(2, 5, (300, 50))
    result = drift(from_pooled(a, a, a), from_pooled(b, b, b), min_effect=0)
    welch, pooled = (ttest_ind(a, b, equal_var=equal).pvalue for equal in (False, True))
    assert result.p_parts[:, FRACTION] == pytest.approx(np.maximum(welch, pooled), rel=0.05, abs=0.01)
    dense = drift(summarise(rectified(rng, 500, 4)), summarise(rectified(rng, 500, 4)))
    assert (dense.p_parts[:, FRACTION] == 1).all()


def test_the_design_effect_divides_the_sample_sizes() -> None:
    """Requests that come four times over say no more than once."""
    rng = RNG(10)
    old, new = rectified(rng, 1000, 40), rectified(rng, 400, 40, scale=1.2)
    once = drift(summarise(old), summarise(new))
    often = drift(summarise(np.repeat(old, 4, axis=0)), summarise(np.repeat(new, 4, axis=0)), design_effect=4.0)
    assert often.p_parts[:, ZEROS] == pytest.approx(once.p_parts[:, ZEROS], rel=1e-6)
    naive = drift(summarise(np.repeat(old, 4, axis=0)), summarise(np.repeat(new, 4, axis=0)))
    for part, factor in ((VALUES, 3), (RANK, 2)):
        exponents = [np.median(np.log10(result.p_parts[:, part])) for result in (once, often, naive)]
        # More requests are cut into more bins; but for that the two agree.
        assert exponents[1] == pytest.approx(exponents[0], abs=1.5)
        assert exponents[2] < factor * exponents[0]


@pytest.mark.parametrize("seed", range(3))
def test_given_any_one_reference_the_mean_e_value_of_windows_at_the_tolerated_shift_is_at_most_one(seed: int) -> None:
    """What a frozen reference needs: without the wider null its own error would be evidence in every window."""
    rng = RNG(seed)
    old = np.repeat(rng.gamma(2, size=(800, 1)), 1500, axis=1)
    new = rng.gamma(2, size=(300, 1500)) * 1.077  # omega is .1
    reference, current = summarise(old), summarise(new)
    e = calibrate(drift(reference, current, 0.1, reference_risk=0.001).p_parts)
    assert (e.mean(axis=0) < 0.95).all()


def test_references_with_evidence_against_the_tolerated_shift_are_as_rare_as_the_risk_says() -> None:
    rng, references, windows = RNG(0), 60, 300
    mean = np.array(
        [
            calibrate(
                drift(
                    summarise(np.repeat(rng.gamma(2, size=(800, 1)), windows, axis=1)),
                    summarise(rng.gamma(2, size=(300, windows)) * 1.077),
                    0.1,
                    reference_risk=REFERENCE_RISK,
                ).p_parts
            ).mean(axis=0)
            for _ in range(references)
        ]
    )
    assert (mean > 1).sum(axis=0).max() <= binom.isf(1e-4, references, REFERENCE_RISK)
    assert (mean.mean(axis=0) < 0.8).all()


def test_what_a_reference_may_show_is_a_noncentral_quantile_and_shrinks_with_its_size() -> None:
    n, freedom = np.array([50.0, 800.0, 20_000.0, 1e6, 1e8]), np.array([1, 5, 15, 15, 3])
    exact = np.sqrt(ncx2.isf(1e-3, freedom, n * 0.1**2) / n)
    assert tolerance(0.1, freedom, n, 1e-3) == pytest.approx(exact, rel=2e-3)
    assert tolerance(0.0, freedom[:2], n[:2], 1e-3) == pytest.approx(np.sqrt(chi2.isf(1e-3, freedom[:2]) / n[:2]))
    assert (np.diff(tolerance(0.1, np.full(5, 5), n, 1e-3)) < 0).all()


@pytest.mark.parametrize("wrong", [{"design_effect": 0.5}, {"reference_risk": 1.0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        drift(empty(2), empty(2), **wrong)


def test_counts_that_agree_almost_exactly_are_no_error() -> None:
    """With many requests, two bins may agree to a millionth, where the noncentral chi-squared's own code overflows."""
    tiny, far = np.array([0.0, 1e-16, 1e-8, 2.5e-8, 1e-6, 400.0]), np.full(6, 375.0)
    tail = ncx2_tail(tiny, np.ones(6, np.int64), far)
    assert tail[:5] == pytest.approx(1)
    assert tail[5] == pytest.approx(ncx2.sf(400.0, 1, 375.0))
    assert (ncx2_tail(tiny[:4], np.ones(4, np.int64), np.zeros(4)) > 0.999).all()
