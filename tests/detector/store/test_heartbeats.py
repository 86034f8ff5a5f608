"""The small table of what agents do now, and the counts of what no check saw, on a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from agent.wire import Envelope, Heartbeat
from deploy.local.postgres import psycopg_url
from detector.domain.agents import AgentState, Heard
from detector.domain.batches import Batch
from detector.domain.settings import AgentLimits
from detector.domain.types import Advance, AlarmState, Taken
from detector.store import LostOwnership, Store
from detector.store.heartbeats import FORGET, MOST_AGENTS
from tests.detector.builders import MINUTE, START, deployment, ms, summary, window
from tests.detector.samples import check

SECOND = timedelta(seconds=1)


class Line:
    """One partition into one store."""

    def __init__(self, url: str) -> None:
        self.store, self._next = Store(url), 0

    def feed(self, *envelopes: Envelope, at: datetime | None = None, limits: AgentLimits | None = None) -> int:
        expected, self._next = self._next or None, self._next + 1
        heard = None if at is None else [Heard(at) for _ in envelopes]
        result = self.store.ingest("t", 0, expected, self._next, envelopes, heard, limits or AgentLimits())
        if at is not None:
            self.store.reach("t", {0: self._next}, at)
        return result.late

    def agent(self, now: datetime, name: str = "agent-a") -> AgentState:
        [found] = [one for one in self.store.agent_states(now) if one.agent_id == name]
        return found


@pytest.fixture
def line(database_url: str) -> Iterator[Line]:
    line = Line(database_url)
    yield line
    line.store.close()


def beat(seq: int, at: datetime = START, agent: str = "agent-a", epoch: int = 1, **fields: Any) -> Envelope:
    values: dict[str, Any] = {"status": "serving", "interval_ms": 30_000, "window_ms": 60_000, "sample_rate": 0.5}
    return Envelope(agent, epoch, seq, "digits", "1", "d1", Heartbeat(ms(at), **values | fields))


def test_the_newest_heartbeat_of_a_start_holds(line: Line) -> None:
    line.feed(beat(2, requests=20, sampled=9), beat(1, requests=10, sampled=4), beat(2, requests=20, sampled=9))
    assert (line.agent(START).requests, line.agent(START).sampled) == (20, 9)
    line.feed(beat(1, START + MINUTE, epoch=7, requests=3, sampled=1))
    again = line.agent(START + MINUTE)
    assert (again.requests, again.missed, again.since) == (3, 1.5, START + MINUTE), "another start counts from nothing"


def test_heartbeats_leave_no_keys_behind(line: Line, database_url: str) -> None:
    line.feed(*(beat(seq) for seq in range(1, 50)), window(1))
    with psycopg.connect(psycopg_url(database_url)) as connection:
        assert connection.execute("SELECT count(*) FROM ingest_keys").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM heartbeats").fetchone() == (1,)


def test_from_idle_to_blind_and_back(line: Line) -> None:
    line.feed(deployment(1), at=START)
    line.feed(beat(1), at=START)
    assert line.agent(START).state == "idle"
    later = START + 11 * MINUTE
    line.feed(beat(2, requests=199, sampled=99), at=later)
    assert line.agent(later).state == "idle", "a hundred sampled requests or two hundred in all are needed"
    line.feed(beat(3, requests=200, sampled=0), at=later)
    assert line.agent(later).state == "blind"
    line.feed(window(2), at=later)
    assert (line.agent(later).state, line.agent(later).missed) == ("observing", 0)
    line.feed(beat(4, requests=900, sampled=450), at=later + 9 * MINUTE)
    assert line.agent(later + 9 * MINUTE).state == "observing"
    line.feed(beat(5, requests=900, sampled=450), at=later + 11 * MINUTE)
    assert line.agent(later + 11 * MINUTE).state == "blind"


def test_a_window_without_requests_is_nothing_seen(line: Line) -> None:
    line.feed(beat(1), at=START)
    line.feed(window(2, content=summary(n=0)), at=START)
    assert line.agent(START).last_window_at is None


def test_long_windows_are_waited_for(line: Line) -> None:
    line.feed(beat(1, window_ms=3_600_000, requests=1000, sampled=500), at=START)
    for hours, state in ((2, "idle"), (4, "blind")):
        at = START + timedelta(hours=hours)
        line.feed(beat(1 + hours, window_ms=3_600_000, requests=1000, sampled=500), at=at)
        assert line.agent(at).state == state


def test_silence_is_three_heartbeats_or_the_limit_of_those_without(line: Line) -> None:
    line.feed(beat(1), deployment(1, agent="old"), at=START)
    line.feed(at=START + 105 * SECOND)
    assert line.agent(START + 999 * MINUTE).state == "idle", "by what is ingested, not by the clock"
    line.feed(at=START + 106 * SECOND)
    assert line.agent(START + 999 * MINUTE).state == "silent"
    assert line.agent(START + 999 * MINUTE, "old").state == "idle"
    line.feed(at=START + 601 * SECOND)
    assert line.agent(START + 999 * MINUTE, "old").state == "silent"


def test_a_farewell_is_not_undone_by_windows_that_follow_it(line: Line) -> None:
    line.feed(beat(1), beat(2, status="stopped"), window(1), at=START)
    assert line.agent(START).state == "stopped"
    line.feed(beat(1, epoch=2), at=START + MINUTE)
    assert line.agent(START + MINUTE).state == "observing"


def test_a_refused_version_is_no_model_version(line: Line) -> None:
    line.feed(replace(beat(1, status="refused"), version="9", digest=""), at=START)
    assert line.store.model_version("digits", None) is None
    assert (line.agent(START).state, line.agent(START).model_version_id) == ("blind", None)


def test_the_table_is_bounded_by_agents_and_age(line: Line, database_url: str) -> None:
    crowd = [beat(1, agent=f"pod-{i:05}") for i in range(MOST_AGENTS + 200)]
    for i in range(0, len(crowd), 200):
        line.feed(*crowd[i : i + 200], at=START + i * SECOND)
    newest = len(crowd) * SECOND
    line.store.maintain(START + newest, 30, 0)
    left = {one.agent_id for one in line.store.agent_states(START + newest)}
    assert left == {envelope.agent_id for envelope in crowd[200:]}
    line.store.maintain(START + FORGET + 2 * newest, 30, 0)
    with psycopg.connect(psycopg_url(database_url)) as connection:
        assert connection.execute("SELECT count(*) FROM heartbeats").fetchone() == (0,)


def test_partitions_say_how_far_they_are_and_where_they_broke_off(line: Line) -> None:
    line.feed(beat(1), window(1), at=START)
    [version] = line.store.versions(START)
    told = line.store.ingested(version.id, START)
    assert (told.complete_to, told.unbroken_since, told.broken_at) == (START, START, None)
    line.store.reach("t", {0: 7}, START + MINUTE)
    assert line.store.complete_to("t") == {0: START}, "another offset is stored: another process is at it"
    line.store.reach("t", {0: 1}, START + MINUTE)
    line.store.reach("t", {0: 1}, START + 61 * MINUTE)
    told = line.store.ingested(version.id, START + 61 * MINUTE)
    assert (told.unbroken_since, told.broken_at) == (START + 61 * MINUTE, START + MINUTE)
    line.store.reach("t", {0: 1}, START)
    assert line.store.complete_to("t") == {0: START + 61 * MINUTE}, "never back"


def test_before_the_first_cut_nothing_is_complete(line: Line) -> None:
    line.store.ingest("t", 0, None, 1, [window(1)], [Heard(START)])
    [version] = line.store.versions(START)
    assert line.store.ingested(version.id, START).complete_to == datetime.fromtimestamp(0, START.tzinfo)


def advance(store: Store, version_id: int, taken: Taken) -> None:
    """Stores a check that took windows in."""
    reference = store.save_reference(version_id, "offline", version_id, START, START + MINUTE, 1, {"fc1": summary()})
    state = AlarmState(reference, Batch(taken.start, taken.end, taken.checked, 1), {})
    store.save_check(check(version_id), {}, Advance(None, state, taken))


def test_late_requests_are_counted_once_however_their_window_is_cut(line: Line) -> None:
    line.feed(window(1))
    [version] = line.store.versions(START)
    advance(line.store, version.id, Taken(START, START + MINUTE, 20, 0))
    assert line.feed(window(2, agent="agent-b", layers=("conv1",)), window(3, START + MINUTE)) == 20
    assert line.feed(window(4, agent="agent-b", layers=("fc1",))) == 0, "the same requests, another part of the window"
    assert line.feed(window(4, agent="agent-b", layers=("fc1",))) == 0, "and a repetition"
    [seen] = line.store.progress()
    assert (seen.checked, seen.passed_over, seen.late) == (20, 0, 20)
    assert line.store.summaries(version.id, START, START + MINUTE)["fc1"].n == 40, (
        "they are in the windows all the same"
    )


def test_windows_that_grow_during_a_check_are_checked_again(line: Line) -> None:
    line.feed(window(1))
    [version] = line.store.versions(START)
    taken = Taken(START, START + MINUTE, 20, 0)
    line.feed(window(2, agent="agent-b"))
    with pytest.raises(LostOwnership, match="grew from 20 to 40 requests"):
        advance(line.store, version.id, taken)
    assert line.store.alarm_state(version.id) is None
    assert line.store.checks(version.id, START, 9) == []


def test_an_agent_without_heartbeats_may_serve_two_versions_at_once(line: Line) -> None:
    def current(at: datetime) -> list[str]:
        return [version.version for version in line.store.current_versions(at)]

    def windows(minute: int, *versions: str) -> None:
        at = START + minute * MINUTE
        line.feed(*(window(1000 * int(name) + minute, at, version=name) for name in versions), at=at + MINUTE)

    line.feed(deployment(1), at=START)
    windows(0, "1")
    line.feed(deployment(2, START + MINUTE + SECOND, version="2"), at=START + MINUTE + 2 * SECOND)
    windows(1, "1")  # began before the other was deployed: what was still under way
    assert current(START + 2 * MINUTE) == ["2"]
    for minute in range(2, 6):  # a canary
        windows(minute, "1", "2")
    assert current(START + 6 * MINUTE) == ["1", "2"]
    for minute in range(6, 18):  # which is promoted
        windows(minute, "2")
    assert current(START + 18 * MINUTE) == ["2"]


def test_a_second_pod_of_the_same_name_hides_nothing(line: Line) -> None:
    """Two lives under one name at once: every request counts, and the agent is alive."""
    for minute in range(20):
        at = START + minute * MINUTE
        line.feed(beat(minute + 1, at, epoch=1), beat(minute + 1, at, epoch=2), at=at)
        line.feed(window(minute, at, epoch=1), window(minute, at, epoch=2), at=at)
    found = line.store.model_version("digits", "1")
    assert found is not None
    assert sum(span.n for span in line.store.spans(found.id, START, START + 20 * MINUTE)) == 2 * 20 * 20
    assert line.agent(START + 20 * MINUTE).state == "observing"


def test_an_agent_that_holds_its_requests_back_is_not_blind(line: Line) -> None:
    line.feed(deployment(1), beat(1), at=START)
    held = START + 20 * MINUTE
    line.feed(beat(2, held, requests=400, sampled=200, held=12), at=held)
    assert (line.agent(held).state, line.agent(held).missed) == ("idle", 0)
    # What it sampled later it has not told of yet; that counts after ten minutes without another word of any.
    more = held + 5 * MINUTE
    line.feed(beat(3, more, requests=800, sampled=400, held=12), at=more)
    assert (line.agent(more).state, line.agent(more).missed) == ("idle", 200)
    later = held + 11 * MINUTE
    line.feed(beat(4, later, requests=900, sampled=450, held=12), at=later)
    assert line.agent(later).state == "blind"
    line.feed(beat(1, later, epoch=2, requests=10, sampled=5, held=3), at=later)
    assert line.agent(later).state != "blind", "another start"
