"""The alarm budget: published properties of e-Shiryaev-Roberts, in closed form and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from detector.statistics.sequential import CEILING, MAX_E, AlarmEvidence, advance, calibrate, channel_e, threshold

Floats = NDArray[np.float64]


def play(e_values: Floats, days: float = 1.0, limit: float = 1e12) -> AlarmEvidence:
    """One layer; ``e_values`` has shape (windows, channels)."""
    evidence = AlarmEvidence()
    for row in e_values:
        evidence = advance(evidence, {"relu": row}, days, limit)
    return evidence


def test_the_calibrator_has_mean_one_and_its_published_values() -> None:
    # Vovk and Wang (2021), equation (1) with kappa = 1/2.
    assert calibrate(np.array([1.0, 0.25, 0.01, 1e-6])).tolist() == pytest.approx([0.5, 1, 5, 500])
    p = (np.arange(10**6) + 0.5) / 10**6
    assert calibrate(p).mean() == pytest.approx(1, abs=1e-3)
    assert calibrate(np.array([0.0, 1e-300])).tolist() == [MAX_E, MAX_E]


def test_the_recursion_is_the_sum_over_all_times_at_which_a_change_may_have_begun() -> None:
    e = np.random.default_rng(0).gamma(1, size=(20, 3))
    by_definition = sum(np.prod(e[start:], axis=0) for start in range(20))
    assert play(e, days=0.5).layers["relu"] == pytest.approx(0.5 * by_definition)


def test_the_level_is_the_mean_over_layers_of_the_mean_over_channels() -> None:
    evidence = AlarmEvidence({"image": np.array([4.0]), "relu": np.array([1.0, 3.0]), "none": np.zeros(0)})
    assert evidence.level == 3.0
    assert AlarmEvidence().level == 0.0


@pytest.mark.parametrize("dependence", ["independent", "identical"])
def test_the_budget_is_kept_in_simulation(dependence: str) -> None:
    """P(alarm within t) <= t / A and mean run length >= A, with e-values whose mean is 1 exactly."""
    rng, limit, runs, horizon = np.random.default_rng(1), 50.0, 2000, 100
    alarms = 0
    for _ in range(runs):
        p = rng.random((horizon, 8 if dependence == "independent" else 1)) * np.ones(8)
        evidence, limit_reached = AlarmEvidence(), False
        for row in calibrate(p):
            evidence = advance(evidence, {"relu": row}, 1.0, limit)
            if evidence.alarm:
                limit_reached = True
                break
        alarms += limit_reached
    # The bound allows every run; what it must not be is exceeded at a tenth of the horizon, either.
    assert alarms / runs <= horizon / limit
    short = sum(play(calibrate(rng.random((5, 8))), limit=limit).alarm for _ in range(runs))
    assert short / runs <= 5 / limit


def test_one_shifted_channel_of_a_thousand_is_found_by_accumulation() -> None:
    """The reason for averaging processes, not e-values: their mean would shrink in every window."""
    rng = np.random.default_rng(2)
    limit = threshold(90) / (300 / 86_400)  # in windows of five minutes
    evidence, windows = AlarmEvidence(), 0
    while not evidence.alarm and windows < 40:
        p = np.ones(1000)
        p[7] = 10 ** -rng.uniform(2, 4)
        evidence = advance(evidence, {"relu": calibrate(p)}, 1.0, limit)
        windows += 1
    assert 5 <= windows <= 20
    means = calibrate(np.append(np.ones(999), 1e-4)).mean()
    assert means < 1  # such a window would lower the evidence


def test_an_alarm_ends_a_few_windows_after_its_cause_and_all_begins_anew() -> None:
    limit = 100.0
    evidence = play(np.full((3, 4), 1e12), limit=limit)
    assert evidence.alarm
    assert evidence.level == pytest.approx(CEILING * limit)
    alarms = []
    for _ in range(4):
        evidence = advance(evidence, {"relu": np.full(4, 0.5)}, 1.0, limit)
        alarms.append(evidence.alarm)
    assert alarms == [True, True, True, False]
    assert (evidence.level, evidence.days) == (0.0, 0.0)


def test_parts_of_a_channel_have_processes_of_their_own() -> None:
    """Joined in every window, three idle parts would dilute the fourth each time; apart they do so once."""
    e = np.tile([3.0, 0.5, 0.5, 0.5], (1, 1))
    evidence = AlarmEvidence()
    for _ in range(10):
        evidence = advance(evidence, {"relu": e}, 1.0, 1e12)
    alone = play(np.full((10, 1), 3.0)).level
    assert evidence.level == pytest.approx(alone / 4, rel=1e-3)
    assert channel_e(evidence, {"relu": e})["relu"] == pytest.approx([(e.mean() + evidence.level / 10) / 2])


def test_an_alarm_on_a_layer_that_is_observed_no_more_ends() -> None:
    evidence = advance(AlarmEvidence(), {"late": np.full(8, 1e9), "relu": np.ones(8)}, 1.0, 100.0)
    assert evidence.alarm
    alarms = []
    for _ in range(8):
        evidence = advance(evidence, {"relu": np.full(8, 0.5)}, 1.0, 100.0)
        alarms.append(evidence.alarm)
    assert alarms == [True] * 3 + [False] * 5


def test_layers_that_come_go_or_change_their_width_raise_nothing() -> None:
    evidence = advance(AlarmEvidence(), {"relu": np.array([1.0, 1.0])}, 1.0, 1e6)
    evidence = advance(evidence, {"late": np.array([2.0])}, 1.0, 1e6)
    assert evidence.layers["relu"].tolist() == [2.0, 2.0]
    assert evidence.layers["late"].tolist() == [2.0]
    evidence = advance(evidence, {"relu": np.full(3, 0.5)}, 1.0, 1e6)
    assert evidence.layers["relu"].tolist() == [0.5] * 3
    assert set(channel_e(evidence, {"relu": np.full(3, 2.0)})) == {"relu"}


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30), st.floats(1e-4, 10))
def test_without_evidence_the_level_never_exceeds_the_days(e: list[float], days: float) -> None:
    evidence = play(np.minimum(np.array(e), 1)[:, None], days)
    assert evidence.level <= evidence.days * (1 + 1e-9)


def test_channels_are_judged_by_the_newest_window_and_by_all() -> None:
    evidence = AlarmEvidence({"relu": np.array([40.0, 1.0])}, days=4.0)
    assert channel_e(evidence, {"relu": np.array([0.5, 100.0])})["relu"].tolist() == [5.25, 50.125]


@pytest.mark.parametrize(("days", "limit", "e"), [(0, 1, 1.0), (1, 0, 1.0), (1, 1, -1.0), (1, 1, np.nan)])
def test_bad_input_is_refused(days: float, limit: float, e: float) -> None:
    with pytest.raises(ValueError, match=r"must be positive|negative or not a number"):
        advance(AlarmEvidence(), {"relu": np.array([e])}, days, limit)


def test_the_threshold_is_the_budget() -> None:
    assert threshold(90, shares=1) == 90
    with pytest.raises(ValueError, match="must be positive"):
        threshold(0)
