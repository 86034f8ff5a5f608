"""What agents do now, and what follows for the versions that they serve.

"Nobody asks", "nobody looks" and "who looks sees nothing" are three states, and only the last two are worth a page.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeVar

AgentCondition = Literal["observing", "idle", "blind", "silent", "stopped"]
VersionCondition = Literal["observed", "idle", "blind", "no_agent", "stopped", "superseded"]
ALIVE: tuple[AgentCondition, ...] = ("observing", "idle", "blind")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Heard:
    """When a message reached the broker, as far as is known, and what it says of its agent's clock."""

    at: datetime
    clock_error: float | None = None
    """Seconds that the agent's clock is ahead; None where this message does not tell."""


@dataclass(frozen=True, slots=True)
class AgentState:
    """One agent and model version, as the view `agent_states` has it."""

    model_version_id: int | None
    """None for a version that the agent refused."""
    model: str
    version: str
    digest: str
    agent_id: str
    state: AgentCondition
    first_seen: datetime | None
    since: datetime
    heard_at: datetime
    known_to: datetime
    last_window_at: datetime | None
    interval_seconds: float | None
    """Between heartbeats; None for an agent that sends none."""
    clock_error_seconds: float | None
    requests: int
    sampled: int
    replayed: int
    rejected: int
    dropped: int
    missed: float
    silent_seconds: float
    waiting_since: datetime | None
    waiting_moved_at: datetime | None

    @property
    def alive(self) -> bool:
        """Whether it serves and was heard lately."""
        return self.state in ALIVE

    @property
    def refused(self) -> bool:
        """Whether it cannot load the version, which is then no version that it serves."""
        return self.digest == ""

    @property
    def alive_until(self) -> datetime:
        """When it counts, or counted, as silent without another word."""
        return self.heard_at + timedelta(seconds=self.silent_seconds)


@dataclass(frozen=True, slots=True)
class VersionState:
    """What the agents of a version amount to."""

    state: VersionCondition
    heard_at: datetime
    agents: Mapping[AgentCondition, int]
    """How many are alive, by state."""
    clock_error_seconds: float | None
    """Of the alive agent whose clock is farthest off; None where none was measured."""


def version_states(agents: Iterable[AgentState]) -> dict[tuple[str, str], VersionState]:
    """By model and version name. An agent that refuses a file is blind, whatever it served under that name before."""
    agents = list(agents)
    by_name = _grouped(agents, lambda one: (one.model, one.version))
    return {key: _state_of(own, [a for a in agents if a.model == key[0]]) for key, own in by_name.items()}


def superseded_ids(agents: Iterable[AgentState]) -> set[int]:
    """Ids of the model versions that others have taken the place of."""
    agents = [one for one in agents if one.model_version_id is not None]
    by_file = _grouped(agents, lambda one: one.model_version_id)
    return {id for id, own in by_file.items() if id is not None and _superseded(own, agents)}


def _grouped(agents: Iterable[AgentState], key: Callable[[AgentState], K]) -> dict[K, list[AgentState]]:
    groups: dict[K, list[AgentState]] = {}
    for one in agents:
        groups.setdefault(key(one), []).append(one)
    return groups


def _state_of(own: Sequence[AgentState], of_model: Sequence[AgentState]) -> VersionState:
    refusing = {one.agent_id for one in own if one.refused and one.alive}
    alive = [one for one in own if one.alive and (one.refused or one.agent_id not in refusing)]
    states = {one.state for one in alive}
    counts: dict[AgentCondition, int] = {name: sum(one.state == name for one in alive) for name in ALIVE}
    errors = [one.clock_error_seconds for one in alive if one.clock_error_seconds is not None]
    state: VersionCondition
    if "observing" in states:
        state = "observed"
    elif states:
        state = "blind" if "blind" in states else "idle"
    elif _superseded(own, of_model):
        state = "superseded"
    else:
        state = "no_agent" if _missed(own) else "stopped"
    return VersionState(state, max(one.heard_at for one in own), counts, max(errors, key=abs, default=None))


def _missed(own: Sequence[AgentState]) -> bool:
    """Whether one that was alive when the last of the others said farewell fell silent without a word.

    Not one that could not load the version: it told so while it lived, and observed nothing that is missed now.
    """
    farewell = max((one.heard_at for one in own if one.state == "stopped"), default=None)
    silent = [one for one in own if one.state == "silent" and not one.refused]
    return any(farewell is None or one.alive_until > farewell for one in silent)


def _superseded(own: Sequence[AgentState], of_model: Sequence[AgentState]) -> bool:
    """Whether nobody serves it, and other agents of the model, deployed later, were heard of after it fell silent.

    "Later" is by the newest deployment, so that a rollback counts, or by the first, so that a pod that was moved in the
    midst of a rollout does not.
    """
    if any(one.alive for one in own):
        return False
    gone_at = max(one.heard_at if one.state == "stopped" else one.alive_until for one in own)
    since = max(one.since for one in own)
    first = min((one.first_seen for one in own if one.first_seen is not None), default=since)
    files = {(one.version, one.digest) for one in own}
    others = [a for a in of_model if a.model == own[0].model and not a.refused and (a.version, a.digest) not in files]
    for other in _grouped(others, lambda one: (one.version, one.digest)).values():
        outlived = any(a.alive or a.heard_at > gone_at for a in other)
        later = max(a.since for a in other) >= since or any(a.first_seen and a.first_seen > first for a in other)
        if outlived and later:
            return True
    return False
