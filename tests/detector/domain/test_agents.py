"""From agents to versions: when a silence is a gap, and when others have taken the place."""

from __future__ import annotations

from datetime import timedelta

import pytest

from detector.domain.agents import AgentState, superseded_ids, version_states
from tests.detector.samples import NOW, agent

LONG_AGO = NOW - timedelta(minutes=30)
DAY = timedelta(days=1)


def state(*agents: AgentState, version: str = "1") -> str:
    return version_states(agents)["digits", version].state


def one(name: str, state: str, version: str = "1", **fields: object) -> AgentState:
    return agent(name, state, version, id=int(version), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["observing", "blind", "idle", "silent"], "observed"),
        (["idle", "blind", "silent"], "blind"),
        (["idle", "silent", "stopped"], "idle"),
        (["silent", "silent"], "no_agent"),
        (["stopped", "stopped"], "stopped"),
    ],
)
def test_the_best_that_any_agent_does_is_the_versions_state(states: list[str], expected: str) -> None:
    assert state(*(one(f"pod-{i}", name, heard=LONG_AGO) for i, name in enumerate(states))) == expected


def test_one_who_was_silent_long_before_the_last_farewell_is_not_missed() -> None:
    gone = one("gone", "silent", heard=LONG_AGO - DAY)
    assert state(gone, one("last", "stopped", heard=LONG_AGO)) == "stopped"
    died = one("died", "silent", heard=LONG_AGO - timedelta(seconds=60))
    assert state(died, one("last", "stopped", heard=LONG_AGO)) == "no_agent"


def test_an_agent_that_refuses_the_file_is_blind_whatever_it_served_before_under_the_name() -> None:
    refused = agent("pod-1", "blind", "1", id=None)
    assert state(one("pod-1", "observing"), refused) == "blind"
    assert state(one("pod-1", "observing"), refused, one("pod-2", "observing")) == "observed"


def test_others_that_outlive_a_version_and_were_deployed_later_supersede_it() -> None:
    old = one("a", "silent", heard=LONG_AGO, since=NOW - DAY)
    new = one("b", "idle", "2", since=LONG_AGO)
    assert state(old, new) == "superseded"
    assert superseded_ids([old, new]) == {1}
    assert state(old, agent("b", "observing", "2", model="other", id=2, since=NOW)) == "no_agent"
    assert state(old, agent("b", "blind", "2", id=None, since=NOW)) == "no_agent", "a refused version serves nobody"


def test_both_versions_of_a_fleet_that_died_at_once_are_missed() -> None:
    old = one("a", "silent", heard=LONG_AGO, since=NOW - DAY)
    new = one("b", "silent", "2", heard=LONG_AGO + timedelta(seconds=50), since=NOW - DAY / 2)
    assert (state(old, new), state(old, new, version="2")) == ("no_agent", "no_agent")


def test_what_was_deployed_before_supersedes_only_if_it_was_deployed_again() -> None:
    canary = one("b", "silent", "2", heard=LONG_AGO, since=NOW - DAY, first_seen=NOW - DAY)
    stable = one("a", "observing", since=NOW - 9 * DAY, first_seen=NOW - 9 * DAY)
    assert state(stable, canary, version="2") == "no_agent", "a canary that died is missed"
    again = one("c", "observing", since=LONG_AGO, first_seen=NOW - 9 * DAY)
    assert state(stable, again, canary, version="2") == "superseded"


def test_the_clock_that_is_farthest_off_speaks() -> None:
    agents = [one("a", "idle", clock_error_seconds=3.0), one("b", "idle", clock_error_seconds=-1800.0)]
    dead = one("c", "silent", clock_error_seconds=9999.0)
    assert version_states([*agents, dead])["digits", "1"].clock_error_seconds == -1800.0
