"""Work in steps waits for its turn before each, and its clock stands still meanwhile."""

from __future__ import annotations

import pytest

from agent.budget.duty import Duty, DutyLimits
from agent.budget.pace import Pace

KEY = ("digits", "1")


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.25, "a stop is seen soon"
        self.now += seconds


def test_steps_keep_the_duty_cycle_and_their_clock_only_counts_them() -> None:
    time = Time()
    duty = Duty(DutyLimits(0.25, kept=1.0), lambda: time.now)
    with Pace(duty, "holdout", KEY, lambda: False, clock=lambda: time.now, sleep=time.sleep) as pace:
        begin = pace.clock()
        for _ in range(100):
            assert not pace.step()
            time.now += 0.5
        assert pace.clock() - begin == pytest.approx(50.0)
    assert duty.used("holdout") == pytest.approx(50.0)
    assert time.now == pytest.approx(50 / 0.25, rel=0.02)


def test_a_stop_ends_the_waiting_and_what_was_done_is_paid_for() -> None:
    time = Time()
    duty = Duty(DutyLimits(0.01), lambda: time.now)
    stopped = lambda: time.now > 11.5  # noqa: E731
    with Pace(duty, "calibration", KEY, stopped, clock=lambda: time.now, sleep=time.sleep) as pace:
        assert not pace.step(), "what was saved up"
        time.now += 10
        assert not pace.step(), "what is kept for such work"
        time.now += 1
        assert pace.step()
    assert time.now < 12
    assert duty.used("calibration") == pytest.approx(11.0)


def test_what_fails_is_paid_for_too() -> None:
    time = Time()
    duty = Duty(DutyLimits(1.0), lambda: time.now)
    with (
        pytest.raises(KeyError),
        Pace(duty, "holdout", KEY, lambda: False, clock=lambda: time.now, sleep=time.sleep) as pace,
    ):
        pace.step()
        time.now += 3
        raise KeyError
    assert duty.used("holdout") == 3.0
