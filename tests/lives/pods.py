"""Pods with an agent each: real heartbeats and real messages, under a clock that may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np

from agent import wire
from agent.delivery.heartbeats import Heartbeats, Rhythm, Standing
from tests.detector.fakes import probe, rectified, summarise

PROBES = (probe("image", 0, 1, "input"), probe("relu", 1, 2))
CARRY = timedelta(days=1)
RATE = 0.5
"""Share of requests that agents sample."""


@dataclass
class Pod:
    """One agent that serves one model version; what it sends waits in an outbox while the broker is away."""

    name: str
    version: str
    step: timedelta
    clock_error: timedelta = timedelta(0)
    beats: bool = True
    """False for an agent of a release without heartbeats."""
    replays: bool = True
    """False for an agent that loses whatever it samples."""
    now: datetime = field(init=False)
    outbox: list[bytes] = field(default_factory=list)
    pace: int | None = None
    """Messages that it delivers in a step; all where None."""
    group: int = 1
    """Fewer requests than this wait for more, for a day at most."""
    thinned: float = 1.0
    """By how much budgets lower the sampling rate below the configured one."""
    drained: bool = False
    """True for one that gets no traffic any more."""
    refuses: bool = False
    """True for one that cannot load the version."""
    sent: int = 0
    """Requests in its windows."""
    _seq: int = 0
    _counts: dict[str, int] = field(default_factory=dict)
    _held: list[datetime] = field(default_factory=list)
    """When those that wait for more came."""

    @property
    def digest(self) -> str:
        return f"digest-of-{self.version}"

    @property
    def key(self) -> str:
        return f"digits@{self.version}"

    @cached_property
    def heartbeats(self) -> Heartbeats:
        rhythm = Rhythm(int(self.step.total_seconds() * 600), int(self.step.total_seconds() * 1000), RATE)
        return Heartbeats(
            self.name,
            1,
            rhythm,
            lambda: [Standing("digits", self.version, "" if self.refuses else self.digest)],
            lambda model, version: self._counts,
            self._oldest,
            clock_ms=lambda: self._ms(self.now),
            monotonic=lambda: self.now.timestamp(),
        )

    def deploy(self, now: datetime) -> None:
        """Announces itself."""
        self.now = now
        if self.refuses:
            return
        self._post(wire.Deployment(self._ms(now), PROBES, (), "CPUExecutionProvider"))

    def change(self, version: str, now: datetime) -> None:
        """Another version takes the place of the one that it serves."""
        self.version, self._counts, self._held = version, {}, []
        self.deploy(now)

    def serve(self, now: datetime, requests: int, rng: np.random.Generator) -> None:
        """The step that ends now: so many sampled requests, each its own draw of one law, become a window.

        Windows are aligned to the pod's own clock.
        """
        self.now = now
        arrived = 0 if self.drained else self._count(requests)
        if not arrived or not self.replays or self.refuses:
            return
        self._counts["replayed"] = self._counts.get("replayed", 0) + arrived
        length = int(self.step.total_seconds() * 1000)
        end = self._ms(now) // length * length
        if n := self._group(arrived):
            self._window(end - length, length, n, rng)

    def _group(self, arrived: int) -> int:
        """How many requests leave with those that have arrived; none while they are too few."""
        if self._held and self.now - self._held[0] > CARRY:
            self._held.clear()
        self._held += [self.now] * arrived
        if len(self._held) < self.group:
            self._counts["held"] = self._counts.get("held", 0) + arrived
            return 0
        n = len(self._held)
        self._held.clear()
        return n

    def _window(self, start: int, length: int, n: int, rng: np.random.Generator) -> None:
        image, relu = summarise(rectified(rng, n, 1, zeros=0)), summarise(rectified(rng, n, 2))
        pairs = zip(PROBES, (image, relu), strict=True)
        self.sent += n
        self._post(wire.Window(start, start + length, tuple(wire.ProbeWindow(p, s) for p, s in pairs)))

    def deliver(self, now: datetime) -> Sequence[bytes]:
        """What the broker gets now: with a backlog, heartbeats go first."""
        self.now = now
        behind = len(self.outbox) > 3 or self.heartbeats.unknown()
        before = self._beat() if behind else []
        taken, self.outbox = self.outbox[: self.pace], self.outbox[self.pace or len(self.outbox) :]
        return [*before, *taken, *self._beat()]

    def stop(self, now: datetime) -> None:
        """SIGTERM: the next delivery is the last, with a farewell."""
        self.now = now
        self.heartbeats.leave()

    def _beat(self) -> list[bytes]:
        if not self.beats or not self.heartbeats.due():
            return []
        made = self.heartbeats.make()
        self.heartbeats.delivered(made)
        return [wire.encode(envelope) for envelope in made]

    def _count(self, sampled: int) -> int:
        for what, n in (("requests", int(sampled / RATE * self.thinned)), ("sampled", sampled)):
            self._counts[what] = self._counts.get(what, 0) + n
        return sampled

    def _post(self, body: wire.Window | wire.Deployment) -> None:
        self._seq += 1
        envelope = wire.Envelope(self.name, 1, self._seq, "digits", self.version, self.digest, body)
        self.outbox.append(wire.encode(envelope))

    def _oldest(self, key: str) -> bytes | None:
        """Of the messages that wait under a Kafka key."""
        return next((one for one in self.outbox if wire.decode(one).key == key), None)

    def _ms(self, at: datetime) -> int:
        return round((at + self.clock_error).timestamp() * 1000)
