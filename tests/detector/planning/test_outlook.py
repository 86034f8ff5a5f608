"""What the plan is asked about a version that is served."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from detector.checks.check import CheckSettings, run_check
from detector.planning.outlook import question_for
from tests.detector.checks.test_check_budget import GRACE, SETTINGS, Play
from tests.detector.fakes import START, WINDOW


def test_it_asks_for_the_rate_the_width_and_the_reference_that_are_there() -> None:
    play = Play()
    empty = play.check()
    assert question_for(play.store, empty, SETTINGS) is None
    asked = question_for(play.store, play.step(), SETTINGS)
    assert asked is not None
    assert asked.requests_per_second == pytest.approx(250 / (WINDOW / timedelta(seconds=1)))
    assert (asked.layers, asked.channels, asked.reference_requests) == (2, 8, 5000)
    assert 1 <= asked.design_effect < 2


def test_the_shift_it_is_asked_about_is_above_the_tolerated_one() -> None:
    play = Play()
    play.add()
    tolerant = CheckSettings(min_effect=0.5, reference_requests=SETTINGS.reference_requests, reference_windows=1)
    checked = run_check(play.store, play.version, tolerant, START + play.windows * WINDOW + GRACE)
    asked = question_for(play.store, checked, tolerant)
    assert asked is not None
    assert asked.effect == 1.5
    assert question_for(play.store, replace(checked, window_start=None), tolerant) is None
