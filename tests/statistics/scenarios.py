"""Streams of one channel in which something changes, with the healthy stream that each departs from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agent.summary.histogram import Floats
from tests.statistics.draws import INDEPENDENT, Sessions
from tests.statistics.laws import stretch_at, zeros_at
from tests.statistics.peers.exchange import Streams

N_REFERENCE = 1001
"""Above 1 000 evidently takes its Wasserstein distance, as it would with any reference of a real size."""
WINDOW = 200
HORIZON = 2000
"""Requests that a stream is followed for."""
OMEGAS = (0.15, 0.2, 0.3, 0.5)


@dataclass(frozen=True, slots=True)
class Source:
    """Where one channel's requests come from."""

    zeros: float = 0.0
    values: str = "gamma"
    """"gamma", "heavy" (log-normal, sigma 2) or "wide" (gamma's mean, twice its variance)."""
    stretch: float = 1.0
    sessions: Sessions = INDEPENDENT

    def draw(self, streams: int, requests: int, rng: np.random.Generator) -> Floats:
        """Shape (streams, requests)."""
        size = (streams, requests)
        if self.sessions.size == 1:
            return self._fresh(size, rng)
        number = -(-requests // self.sessions.size)
        own = np.repeat(self._fresh((streams, number), rng), self.sessions.size, axis=1)[:, :requests]
        return np.where(rng.random(size) < self.sessions.repeat, own, self._fresh(size, rng))

    def _fresh(self, size: tuple[int, int], rng: np.random.Generator) -> Floats:
        draws = {
            "gamma": lambda: rng.gamma(2.0, size=size),
            "heavy": lambda: rng.lognormal(sigma=2.0, size=size),
            "wide": lambda: rng.gamma(1.0, 2.0, size=size),
        }
        return np.asarray(np.where(rng.random(size) < self.zeros, 0.0, self.stretch * draws[self.values]()))


@dataclass(frozen=True, slots=True)
class Family:
    """A healthy stream and what may become of it, by name."""

    name: str
    healthy: Source
    changes: Mapping[str, Source]


def families() -> list[Family]:
    """All synthetic scenarios."""
    correlated = Sessions(5, 0.5)
    dense = {f"values ω {omega:g}": Source(stretch=stretch_at(omega)) for omega in OMEGAS}
    dense["same mean, twice the variance"] = Source(values="wide")
    sparse = {f"zeros ω {omega:g}": Source(zeros_at(omega, 0.9)) for omega in OMEGAS[1:]}
    sparse |= {"values ω 0.5": Source(0.9, stretch=stretch_at(0.5)), "silent": Source(1.0)}
    heavy = {f"values ω {omega:g}": Source(values="heavy", stretch=stretch_at(omega, "heavy")) for omega in OMEGAS[2:]}
    linked = {f"values ω {omega:g}": Source(stretch=stretch_at(omega), sessions=correlated) for omega in OMEGAS[2:]}
    return [
        Family("no zeros", Source(), dense),
        Family("90% zeros", Source(0.9), sparse),
        Family("heavy tails", Source(values="heavy"), heavy),
        Family("sessions of 5", Source(sessions=correlated), linked),
    ]


def streams(before: Source, now: Source, count: int, rng: np.random.Generator) -> Streams:
    """Healthy references, each followed by a stream that changes with its first request."""
    return Streams(before.draw(count, N_REFERENCE, rng)[:, :, None], now.draw(count, HORIZON, rng)[:, :, None], WINDOW)
