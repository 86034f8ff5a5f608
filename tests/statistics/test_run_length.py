"""A part of the run-length simulation that is quick enough for every test run."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from tests.statistics.draws import Mood, Sessions, counts, draw, part
from tests.statistics.laws import hurdle, stretch_at
from tests.statistics.run_length import LONG, Life, Lives, live


def lives(life: Life, models: int = 60, windows: int = 60) -> Lives:
    (found,) = live([life], models, windows, workers=1)
    return found


@pytest.mark.parametrize("sessions", [Sessions(), Sessions(5, 0.5)], ids=["independent", "sessions"])
def test_no_more_alarms_than_the_budget_allows_while_nothing_happens(sessions: Sessions) -> None:
    same = hurdle(0.5)
    for budget in (60.0, LONG):
        found = lives(Life("nothing", same, same, budget, sessions=sessions))
        assert found.valid, f"{found.alarmed} models, {found.allowed} allowed"
        assert found.keeps_budget, f"{found.alarms} alarms"


def test_a_shift_that_matters_is_found_within_a_few_windows() -> None:
    same, moved = hurdle(0.0), hurdle(0.0, stretch=stretch_at(0.5))
    share, median, _ = lives(Life("moved", same, moved, LONG)).delay()
    assert share == 1
    assert median <= 12


def test_requests_in_sessions_vary_by_their_design_effect() -> None:
    rng = np.random.default_rng(0)
    found = counts(hurdle(0.5), 200, 5000, rng, Sessions(5, 0.5))[:, 0]
    expected = 200 * 0.25 * Sessions(5, 0.5).design_effect
    assert found.var() == pytest.approx(expected, rel=0.1)
    assert (counts(hurdle(0.5), 203, 50, rng, Sessions(5, 0.5)).sum(axis=1) == 203).all()


def test_moods_swing_and_last_as_they_are_told_to() -> None:
    stream = Mood(0.1, 0.9).windows(10_000, 3000, np.random.default_rng(0))
    shares = np.array([window.mean_histogram.zeros / window.n for window in islice(stream, 4)])
    assert shares.std(axis=1) == pytest.approx([0.1] * 4, rel=0.06)
    assert np.corrcoef(shares)[0] == pytest.approx(0.9 ** np.arange(4), abs=0.03)


def test_a_part_of_a_summary_is_that_of_its_channels() -> None:
    whole = draw(hurdle(0.5, graded=True), 100, 6, np.random.default_rng(0))
    some = part(whole, 2, 5)
    assert some.channels == 3
    assert some.mean_histogram.totals().tolist() == [100] * 3
    assert some.mean_histogram.zeros.tolist() == whole.mean_histogram.zeros[2:5].tolist()
    assert some.fraction_sum.tolist() == whole.fraction_sum[2:5].tolist()
