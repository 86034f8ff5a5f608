"""Until when windows are complete."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from detector.domain.agents import AgentState
from detector.domain.watermark import Ingested, closed_until
from tests.detector.samples import NOW, agent

GRACE, WAIT = timedelta(seconds=10), timedelta(seconds=120)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


def closed(*agents: AgentState, complete: Any = NOW, since: Any = NOW - HOUR, broken: Any = None) -> timedelta:
    """How far behind the present."""
    return NOW - closed_until(Ingested(complete, since, broken, agents), NOW, GRACE, WAIT)


def test_it_follows_what_is_ingested_and_never_runs_ahead_of_the_clock() -> None:
    assert closed() == GRACE
    assert closed(complete=NOW - HOUR) == HOUR + GRACE
    assert closed(complete=NOW + HOUR) == GRACE
    assert closed(complete=None, since=None) == GRACE


def test_what_waits_at_an_agent_holds_it_for_as_long_as_the_agent_gets_on() -> None:
    moving = agent(waiting_since=NOW - HOUR, waiting_moved_at=NOW - 100 * SECOND)
    assert closed(moving) == HOUR
    stuck = agent(waiting_since=NOW - HOUR, waiting_moved_at=NOW - 121 * SECOND)
    assert closed(stuck) == GRACE
    for state in ("silent", "stopped"):
        assert closed(agent("a", state, waiting_since=NOW - HOUR, waiting_moved_at=NOW)) == GRACE


def test_after_a_break_it_waits_for_those_who_lived_before_it() -> None:
    resumed, broken = NOW - 60 * SECOND, NOW - HOUR
    lived = agent("a", "silent", heard=broken - 20 * SECOND)
    assert closed(lived, since=resumed, broken=broken) == HOUR + 20 * SECOND
    assert closed(lived, since=NOW - 121 * SECOND, broken=broken) == GRACE, "not for ever"
    assert closed(agent("a", heard=resumed), since=resumed, broken=broken) == GRACE, "it is back"
    gone_before = agent("a", "silent", heard=broken - HOUR)
    assert closed(gone_before, since=resumed, broken=broken) == GRACE


def test_agents_without_heartbeats_hold_nothing() -> None:
    old = agent("a", "silent", heard=NOW - HOUR, interval=None)
    assert closed(old, since=NOW - SECOND, broken=NOW - HOUR) == GRACE
