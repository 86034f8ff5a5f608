"""Until when a version's windows are complete: what checks may look at.

The watermark rests on the broker's order of messages and on the detector's clock alone; no timestamp of an agent moves
it. The detector asks for a partition's end at a moment of its own clock; once it has ingested up to that end, all that
the partition held at that moment is in Postgres: the partition is *complete to* that moment. While an outage is being
caught up, or nobody ingests, this moment stands still, and checks with it; where nothing is sent, it follows the clock.

What is not at the broker yet cannot be known, but it can be waited for: an agent that says that it has windows which
the broker has not taken (after an outage of the broker, say) holds the watermark at the oldest of them, as long as it
gets on with them; and after a break, agents that were alive before it are given a moment to say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from detector.domain.agents import AgentState

BREAK = timedelta(seconds=60)
"""From how long on a standstill of a partition is a break, as after an outage."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """How far the partition of a model version is ingested, and the version's agents."""

    complete_to: datetime | None
    """None where nobody has told: tests, and what a release before this one ingested."""
    unbroken_since: datetime | None
    """When it last went on after a break."""
    broken_at: datetime | None
    """How far it had come when that break began; None where there was none."""
    agents: Sequence[AgentState]


def closed_until(ingested: Ingested, now: datetime, grace: timedelta, wait: timedelta) -> datetime:
    """Windows that end by then get no more data, but for what is late.

    ``grace`` is how long a window takes from its end to the broker where all is well, ``wait`` how long the watermark
    waits for an agent that is silent after a break, or that gets on with nothing.
    """
    known_to = min(now, ingested.complete_to or now)
    closed = known_to - grace
    for agent in ingested.agents:
        if (held := _held_at(agent, ingested, known_to, wait)) is not None:
            closed = min(closed, held)
    return closed


def _held_at(agent: AgentState, ingested: Ingested, known_to: datetime, wait: timedelta) -> datetime | None:
    """The moment behind which an agent's windows may still come; None where it has none that are worth the wait."""
    if agent.interval_seconds is None or agent.refused or agent.state == "stopped":
        return None
    resumed, broken_at = ingested.unbroken_since, ingested.broken_at
    if resumed is not None and broken_at is not None and agent.heard_at < resumed:
        was_alive = agent.alive_until >= broken_at
        return min(agent.heard_at, broken_at) if was_alive and known_to - resumed <= wait else None
    if agent.waiting_since is None or not agent.alive or agent.waiting_moved_at is None:
        return None
    return agent.waiting_since if known_to - agent.waiting_moved_at <= wait else None
