"""Reads what replay takes, and sets the sampling rate by it: the governor's hands."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from agent.metrics import AgentMetrics
from agent.rates.governor import Governor, Reading, effective_ratio
from agent.rates.sampling import Sampler

log = structlog.get_logger()
_STEP_SECONDS = 1.0
_RECENT_STEPS = 60
_WORTH_SAYING = 0.5


class Queue(Protocol):
    """What waits for replay."""

    @property
    def refused(self) -> int: ...
    @property
    def fill(self) -> float: ...


class Meter:
    """What replay has done so far. Written by the replay thread alone, read by any."""

    def __init__(self) -> None:
        self.taken = 0
        """Requests taken from the queue."""
        self.replayed = 0
        """Requests run through a model."""
        self.busy_seconds = 0.0


class Throttle:
    """Keeps `Sampler.rate` at what the budgets allow."""

    def __init__(
        self,
        governor: Governor,
        sampler: Sampler,
        queue: Queue,
        meter: Meter,
        metrics: AgentMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._governor = governor
        self._sampler = sampler
        self._queue = queue
        self._meter = meter
        self._metrics = metrics
        self._clock = clock
        self._said = governor.rate
        first = self._read()
        governor.step(first)
        self._recent: deque[Reading] = deque([first], maxlen=_RECENT_STEPS + 1)
        self._export(governor.rate)

    def run(self, stop: threading.Event) -> None:
        """Sets the rate once a second until stopped."""
        while not stop.wait(_STEP_SECONDS):
            self.step()

    def step(self) -> None:
        """Sets the rate once."""
        reading = self._read()
        self._recent.append(reading)
        rate = self._governor.step(reading)
        self._sampler.rate = rate
        self._export(rate)
        if not _WORTH_SAYING < rate / max(self._said, 1e-12) < 1 / _WORTH_SAYING:
            log.info("sampling.rate", rate=rate, before=self._said, queue_fill=round(reading.fill, 3))
            self._said = rate

    def _export(self, rate: float) -> None:
        effective = effective_ratio(self._recent[0], self._recent[-1])
        self._metrics.target_sample_ratio.set(rate)
        self._metrics.effective_sample_ratio.set(rate if effective is None else effective)

    def _read(self) -> Reading:
        meter, sampler = self._meter, self._sampler
        return Reading(
            self._clock(),
            sampler.seen,
            sampler.kept,
            self._queue.refused,
            meter.taken,
            meter.replayed,
            meter.busy_seconds,
            self._queue.fill,
        )
