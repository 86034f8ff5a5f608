"""Agents' clocks: what a message tells of them, and how times are put right."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from agent.wire import Envelope, Heartbeat, Window
from detector.ingestion.clocks import Between, corrected, heard
from detector.ingestion.cuts import Cuts, Mark
from detector.ingestion.records import RetryLater
from detector.ingestion.shared_clock import ASK_SECONDS, SharedClock
from detector.store import StoreUnavailable
from tests.detector.builders import MINUTE, START, deployment, ms, window

SECOND = timedelta(seconds=1)
JUST_NOW = Between(START - 2 * SECOND, START)
AT_SOME_TIME = Between(START - timedelta(hours=1), START)


def heartbeat(ahead: timedelta, waiting: int | None = None) -> Envelope:
    body = Heartbeat(ms(START + ahead), "serving", 30_000, 60_000, 0.05, waiting_since_ms=waiting)
    return Envelope("agent-a", 1, 1, "digits", "1", "d1", body)


@pytest.mark.parametrize(
    ("ahead", "error"),
    [
        (timedelta(0), 0.0),
        (-2 * SECOND, 0.0),  # delivery may have taken as long
        (-3 * SECOND, -1.0),
        (30 * MINUTE, 1800.0),
        (-30 * MINUTE, -1798.0),
    ],
)
def test_what_delivery_cannot_explain_is_the_clocks_error(ahead: timedelta, error: float) -> None:
    told = heard(heartbeat(ahead), JUST_NOW, None)
    assert told.clock_error == pytest.approx(error)
    assert told.at == START


def test_nothing_is_measured_where_nobody_knows_when_a_message_came() -> None:
    for arrival in (AT_SOME_TIME, Between(None, START)):
        assert heard(heartbeat(30 * MINUTE), arrival, None).clock_error is None
        assert heard(heartbeat(30 * MINUTE), arrival, 77.0).clock_error == 77.0


def test_measures_that_hardly_differ_are_one() -> None:
    assert heard(heartbeat(30 * MINUTE), JUST_NOW, 1797.0).clock_error == 1797.0
    assert heard(heartbeat(30 * MINUTE), JUST_NOW, 1794.0).clock_error == pytest.approx(1800.0)


def test_an_agent_was_heard_when_it_says_put_right_but_never_before_the_message_could_come() -> None:
    told = heard(window(1, START - 40 * MINUTE), AT_SOME_TIME, None)
    assert told.at == START - 39 * MINUTE
    assert heard(window(1, START - 40 * MINUTE), AT_SOME_TIME, -600.0).at == START - 29 * MINUTE
    assert heard(window(1, START - 300 * MINUTE), AT_SOME_TIME, None).at == START - 60 * MINUTE
    assert heard(window(1, START + 30 * MINUTE), AT_SOME_TIME, None).at == START
    assert heard(window(1, START - 300 * MINUTE), JUST_NOW, None).at == START, "its outbox was emptied just now"


@pytest.mark.parametrize(
    ("error", "minutes"), [(5.0, 0), (1800.0, -30), (-1800.0, 30), (-1824.0, 31), (1824.0, -30), (-6.0, 1)]
)
def test_windows_move_by_whole_windows_and_rather_too_late(error: float, minutes: int) -> None:
    moved = corrected(window(1), error).body
    assert isinstance(moved, Window)
    assert (moved.start_ms, moved.end_ms) == (ms(START + minutes * MINUTE), ms(START + (minutes + 1) * MINUTE))


def test_other_times_move_by_the_error() -> None:
    assert corrected(deployment(1), -600.0) == deployment(1, START + 10 * MINUTE)
    moved = corrected(heartbeat(timedelta(0), waiting=ms(START - MINUTE)), 60.0)
    assert moved == heartbeat(-MINUTE, waiting=ms(START - 2 * MINUTE))
    assert corrected(deployment(1), None) is not None


def test_a_cut_is_reached_once_all_before_it_is_read() -> None:
    cuts = Cuts()
    cuts.begin(START, {0: 5, 1: 0})
    assert cuts.reached({0: 4, 1: 0}) == {1: Mark(START, 0)}
    assert cuts.lacking([0, 1]) == [1]
    cuts.begin(START + MINUTE, {0: 99, 1: 3})
    assert cuts.reached({0: 5, 1: 2, 7: 0}) == {0: Mark(START, 5)}, "the end that was asked for first counts"


def test_all_detectors_go_by_the_clock_of_postgres() -> None:
    steady, told = 100.0, START
    answers: list[StoreUnavailable | None] = [StoreUnavailable("away")]

    def ask() -> datetime:
        if answers and (failure := answers.pop()):
            raise failure
        return told

    clock = SharedClock(ask, lambda: steady)
    with pytest.raises(RetryLater, match="away"):
        clock()
    assert clock() == START
    steady, told = 101.0, START + timedelta(hours=1)
    assert clock() == START + timedelta(seconds=1), "carried on, not asked at every message"
    steady, answers = 100.0 + ASK_SECONDS, [StoreUnavailable("away")]
    assert clock() == START + timedelta(seconds=ASK_SECONDS), "carried on while Postgres is away"
    steady = 100.0 + 2 * ASK_SECONDS
    assert clock() == told
