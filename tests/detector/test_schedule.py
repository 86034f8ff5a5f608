"""The clockwork: failing, slow and stopped jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from detector.schedule import Job, Schedule


def until(condition: Callable[[], bool], timeout: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_a_failing_job_is_counted_and_logged_and_runs_again() -> None:
    calls: list[str] = []
    errors: list[str] = []

    def fail() -> None:
        calls.append("check")
        raise RuntimeError("database is away")

    schedule = Schedule([Job("check", 0.02, fail), Job("maintain", 0.02, lambda: calls.append("m"))], errors.append)
    with capture_logs() as logs:
        schedule.start()
        assert until(lambda: len(errors) >= 3)
        schedule.stop()
    assert set(errors) == {"check"}
    assert "m" in calls
    assert logs[0]["event"] == "schedule.job_failed"
    assert (logs[0]["job"], logs[0]["error"]) == ("check", "database is away")


def test_a_slow_job_never_runs_twice_at_once_and_does_not_hold_up_the_others() -> None:
    running, most, others = 0, 0, 0
    release = threading.Event()

    def slow() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        release.wait(5)
        running -= 1

    def quick() -> None:
        nonlocal others
        others += 1

    schedule = Schedule([Job("slow", 0.02, slow), Job("quick", 0.02, quick)], lambda name: None)
    schedule.start()
    assert until(lambda: others >= 5)
    release.set()
    schedule.stop()
    assert most == 1


def test_it_runs_until_the_event_and_then_no_more() -> None:
    calls: list[float] = []
    stop = threading.Event()
    schedule = Schedule([Job("check", 0.02, lambda: calls.append(time.monotonic()))], lambda name: None)
    thread = threading.Thread(target=schedule.run, args=(stop,))
    thread.start()
    assert until(lambda: len(calls) >= 2)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    seen = len(calls)
    time.sleep(0.1)
    assert len(calls) == seen
    schedule.stop()  # once more does no harm


def test_the_first_run_can_be_put_off() -> None:
    calls: list[float] = []
    begun = time.monotonic()
    schedule = Schedule([Job("maintain", 60, lambda: calls.append(time.monotonic()), 0.2)], lambda name: None)
    schedule.start()
    assert until(lambda: bool(calls))
    schedule.stop()
    assert calls[0] - begun >= 0.19


def test_an_interval_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="check must be positive"):
        Schedule([Job("check", 0, lambda: None)], lambda name: None)
