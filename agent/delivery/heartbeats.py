"""Heartbeats: what the agent does with each model version, said at a steady interval and on changes.

Only the newest matters, so none waits in the outbox: they are made as they are handed to the broker, and what could not
be delivered is made anew, with the counts of that moment. What an agent no longer serves gets a farewell, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agent import wire
from agent.clock import unix_ms

Key = tuple[str, str, str]
"""Model, version, digest."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A model version in this agent's repository."""

    model: str
    version: str
    digest: str
    """Empty where the version was refused."""

    @property
    def key(self) -> Key:
        """What names it."""
        return self.model, self.version, self.digest


@dataclass(frozen=True, slots=True)
class Rhythm:
    """What every heartbeat of an agent says of its settings."""

    interval_ms: int
    window_ms: int
    sample_rate: float


class Heartbeats:
    """Says when heartbeats are due, and makes them; belongs to the thread that publishes."""

    def __init__(
        self,
        agent_id: str,
        boot_epoch: int,
        rhythm: Rhythm,
        standing: Callable[[], Iterable[Standing]],
        counts: Callable[[str, str], Mapping[str, int]],
        oldest: Callable[[str], bytes | None],
        clock_ms: Callable[[], int] = unix_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``counts`` gives a model version's requests; ``oldest`` the oldest message that waits under a Kafka key."""
        self._agent_id, self._boot_epoch, self._rhythm = agent_id, boot_epoch, rhythm
        self._standing, self._counts, self._oldest = standing, counts, oldest
        self._clock_ms, self._monotonic = clock_ms, monotonic
        self._seq = 0
        self._told: dict[Key, Standing] = {}
        self._next = 0.0
        self._waiting: set[str] = set()
        self._leaving = False

    def leave(self) -> None:
        """The agent stops: the next heartbeats are farewells, and due at once."""
        self._leaving = True

    def due(self) -> bool:
        """Whether there is anything to say now: in time, of a change, or that nothing waits any more."""
        serving = self._serving()
        if serving.keys() != self._told.keys():
            return True
        delivered = bool(self._waiting) and all(self._oldest(key) is None for key in self._waiting)
        return bool(serving) and (delivered or self._monotonic() >= self._next)

    def unknown(self) -> bool:
        """Whether something is served that no heartbeat has told of yet: the first goes before all else, for the
        detector measures the agent's clock by it."""
        return bool(self._serving().keys() - self._told.keys())

    def make(self) -> list[wire.Envelope]:
        """One heartbeat for each model version, as of now; a farewell for each that is served no more."""
        serving = self._serving()
        gone = [one for key, one in self._told.items() if key not in serving]
        return [self._one(one, "stopped") for one in gone] + [
            self._one(one, "serving" if one.digest else "refused") for one in serving.values()
        ]

    def delivered(self, envelopes: Iterable[wire.Envelope]) -> None:
        """The broker has these; without it, they stay due."""
        for envelope in envelopes:
            key, body = (envelope.model, envelope.version, envelope.digest), envelope.body
            if not isinstance(body, wire.Heartbeat):
                continue
            if body.status == "stopped":
                self._told.pop(key, None)
            else:
                self._told[key] = Standing(*key)
            # A farewell is the last word on its version: nobody would take its key away again.
            waits = body.waiting_since_ms is not None and body.status != "stopped"
            (self._waiting.add if waits else self._waiting.discard)(envelope.key)
        self._next = self._monotonic() + self._rhythm.interval_ms / 1000

    def _serving(self) -> dict[Key, Standing]:
        return {} if self._leaving else {one.key: one for one in self._standing()}

    def _one(self, one: Standing, status: wire.HeartbeatStatus) -> wire.Envelope:
        self._seq += 1
        rhythm = self._rhythm
        body = wire.Heartbeat(
            self._clock_ms(), status, rhythm.interval_ms, rhythm.window_ms, rhythm.sample_rate,
            waiting_since_ms=self._waiting_since(one), **self._counts(one.model, one.version),
        )  # fmt: skip
        return wire.Envelope(self._agent_id, self._boot_epoch, self._seq, *one.key, body)

    def _waiting_since(self, one: Standing) -> int | None:
        """Start of the oldest window in the outbox; messages wait in the order in which they were made."""
        payload = self._oldest(f"{one.model}@{one.version}")
        if payload is None:
            return None
        return wire.decode(payload).start_ms
