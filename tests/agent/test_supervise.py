"""What fails is tried again, later each time; loops end together, within one deadline."""

from __future__ import annotations

import threading
import time

import pytest
from structlog.testing import capture_logs

from agent.supervise import Backoff, join, repeat, supervised


class Stop(threading.Event):
    """Is set after so many waits, and notes how long each would have been."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._most = most

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        if len(self.waits) >= self._most:
            self.set()
        return self.is_set()


def test_waits_double_up_to_the_longest_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(1.0, 5.0, jitter=lambda: 1.0)
    assert [backoff.seconds() for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
    backoff.reset()
    assert backoff.seconds() == 1.0


def test_even_the_longest_waits_differ_from_pod_to_pod() -> None:
    waits = []
    for _ in range(20):
        backoff = Backoff(1.0, 5.0)
        waits.append([backoff.seconds() for _ in range(10)][-1])
    assert len(set(waits)) > 1
    assert all(2.5 <= wait <= 5.0 for wait in waits)


def test_an_attempt_is_repeated_until_it_succeeds() -> None:
    results = iter([OSError("once"), OSError("twice"), None])
    said: list[tuple[str, float]] = []

    def attempt() -> None:
        if (error := next(results)) is not None:
            raise error

    stop = Stop(9)
    backoff = Backoff(1.0, 60.0, jitter=lambda: 0.0)
    assert repeat(attempt, stop, backoff, lambda error, seconds: said.append((str(error), seconds)), on=OSError)
    assert said == [("once", 0.5), ("twice", 1.0)]
    assert stop.waits == [0.5, 1.0]


def test_a_stop_ends_the_repetition_and_other_errors_are_raised() -> None:
    def attempt() -> None:
        raise OSError("always")

    assert not repeat(attempt, Stop(3), Backoff(1.0, 60.0), lambda *_: None, on=OSError)
    with pytest.raises(OSError, match="always"):
        repeat(attempt, Stop(3), Backoff(1.0, 60.0), lambda *_: None, on=ValueError)


def test_a_stop_cuts_a_long_wait_short() -> None:
    stop = threading.Event()

    def loop(_stop: threading.Event) -> None:
        raise RuntimeError("broken")

    with capture_logs() as logs:
        failures: list[int] = []
        thread = supervised("x", loop, stop, failed=lambda: failures.append(1), backoff=Backoff(60.0, 60.0))
        while not logs:
            time.sleep(0.01)
        stop.set()
        thread.join(5)
    assert not thread.is_alive()
    assert [(one["event"], one["loop"], one["log_level"]) for one in logs] == [("loop.failed", "x", "error")]
    assert failures == [1]


def test_threads_that_hang_share_one_deadline() -> None:
    release = threading.Event()
    threads = [supervised(name, lambda _stop: (release.wait(10), None)[1], threading.Event()) for name in "abc"]
    begin = time.monotonic()
    with capture_logs() as logs:
        join(threads, begin + 0.3)
    assert 0.25 < time.monotonic() - begin < 0.8
    assert [one["loop"] for one in logs] == ["a", "b", "c"]
    release.set()
    for thread in threads:
        assert thread.daemon
        thread.join(5)
