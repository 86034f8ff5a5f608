"""The design effect against its definition, and against traffic whose overdispersion is known."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from agent.summary import Summary, merge
from detector.statistics.bins import common_bins
from detector.statistics.design_effect import QUARTERS, estimate, unknown
from tests.detector.fakes import rectified, summarise


def windows(rng: np.random.Generator, count: int, repeats: int = 1, n: int = 240, channels: int = 20) -> list[Summary]:
    """Every request comes ``repeats`` times, as from a camera that stands still."""
    return [summarise(np.repeat(rectified(rng, n // repeats, channels), repeats, axis=0)) for _ in range(count)]


def test_the_estimate_is_pearsons_statistic_over_its_degrees_of_freedom() -> None:
    parts = windows(np.random.default_rng(0), 6, channels=1)
    whole = reduce(merge, parts)
    bins = np.array([QUARTERS])
    rows = [
        np.append(w.mean_histogram.zeros, common_bins(whole.mean_histogram, w.mean_histogram, bins)[1]) for w in parts
    ]
    oracle = chi2_contingency(np.array(rows), correction=False)
    assert estimate(whole, parts).estimate == pytest.approx(oracle.statistic / oracle.dof)


@pytest.mark.parametrize("repeats", [1, 4])
def test_repeated_requests_count_once(repeats: int) -> None:
    parts = windows(np.random.default_rng(1), 40, repeats)
    effect = estimate(reduce(merge, parts), parts)
    assert effect.estimate == pytest.approx(repeats, rel=0.1)
    assert (effect.values >= repeats).all()
    assert effect.values.max() < 1.6 * repeats
    assert (effect.windows, effect.requests_per_window) == (40, 240.0)


def test_few_windows_are_taken_with_care() -> None:
    ratio = []
    for seed in range(30):
        parts = windows(np.random.default_rng(seed), 3, repeats=4)
        ratio.append(estimate(reduce(merge, parts), parts).values.mean() / 4)
    assert np.mean(ratio) > 0.85
    independent = windows(np.random.default_rng(3), 3)
    assert estimate(reduce(merge, independent), independent).values.mean() == pytest.approx(1.65, abs=0.25)
    assert unknown(2).values.tolist() == pytest.approx([2.055, 2.055], abs=0.01)
    one = windows(np.random.default_rng(4), 1)
    assert estimate(one[0], one).values == pytest.approx(unknown(20).values)


def test_a_shift_of_whole_windows_weighs_more_in_larger_ones() -> None:
    parts = windows(np.random.default_rng(5), 40, 4)
    effect = estimate(reduce(merge, parts), parts)
    assert effect.at(100) == pytest.approx(effect.values)
    assert effect.at(480) == pytest.approx(2 * effect.values - 1)
    assert unknown(1).at(1000) == pytest.approx(unknown(1).values)


def test_channels_without_variation_and_empty_windows_do_no_harm() -> None:
    values = np.zeros((50, 3))
    values[:, 1] = 2.0
    parts = [summarise(values), summarise(values[:0]), summarise(values)]
    effect = estimate(reduce(merge, parts), parts)
    assert (effect.estimate, effect.windows) == (1.0, 2)
    assert np.isfinite(effect.values).all()
    with pytest.raises(ValueError, match="2 channels, its reference 3"):
        estimate(parts[0], [summarise(np.zeros((5, 2)))])


@pytest.mark.parametrize(("memory", "least", "most"), [(0.0, 1.0, 1.6), (0.9, 2.5, 60.0)])
def test_moods_that_outlast_windows_make_evidence_slower(memory: float, least: float, most: float) -> None:
    """A share of zeros that wanders slowly: neighbours resemble each other, and forty windows are as few."""
    found = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        parts, mood = [], 0.0
        for _ in range(40):
            mood = memory * mood + np.sqrt(1 - memory**2) * rng.normal()
            zeros = 0.5 + (0.06 * float(np.clip(mood, -3, 3)) if memory else 0.0)
            parts.append(summarise(rectified(rng, 400, 8, zeros)))
        found.append(float(np.median(estimate(reduce(merge, parts), parts).values)))
    assert least <= np.median(found) <= most


def test_zeros_that_hang_together_more_than_values_do_count_by_themselves() -> None:
    """One customer's requests all activate a channel, another's never do; how strongly is each request's own."""
    rng = np.random.default_rng(8)

    def window() -> Summary:
        values = rectified(rng, 240, 20, zeros=0)
        return summarise(values * np.repeat(rng.random((12, 20)) < 0.6, 20, axis=0))

    parts = [window() for _ in range(40)]
    effect = estimate(reduce(merge, parts), parts)
    zeros = np.array([part.mean_histogram.zeros / part.n for part in parts])
    own = (zeros.var(axis=0, ddof=1) * 240 / (zeros.mean(axis=0) * (1 - zeros.mean(axis=0)))).mean()
    assert own > 2 * effect.estimate
    assert effect.values.mean() > own


def test_moods_of_many_windows_show_in_few_long_blocks() -> None:
    rng = np.random.default_rng(9)
    ratios = []
    for _ in range(20):
        moods = np.repeat(rng.choice([0.3, 0.7], 10), 8)
        parts = [summarise(rectified(rng, 240, 10, zeros=float(share))) for share in moods]
        # In the long run a mood is 8 windows of requests that prove as much as one window's do.
        one = 240 * 0.04 / 0.25
        ratios.append(float(np.median(estimate(reduce(merge, parts), parts).values)) / (8 * one))
    assert np.median(ratios) > 0.8
