"""Reads what replay takes, and sets the sampling rates by it: the governor's hands."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

import structlog

from agent.budget.duty import WORKS, Duty
from agent.budget.shares import ModelKey
from agent.metrics import AgentMetrics
from agent.rates.governor import Governors, Reading, effective_ratio
from agent.rates.samplers import Samplers

log = structlog.get_logger()
_STEP_SECONDS = 1.0
_RECENT_STEPS = 60
_WORTH_SAYING = 0.5
_MEMORY = 0.5
"""Weight of the newest step in the average of what other work takes."""


class Queue(Protocol):
    """What waits for replay."""

    def refused_of(self, key: ModelKey) -> int: ...
    def fill_of(self, key: ModelKey) -> float: ...


class Meter:
    """What replay has done so far for a model version. Written by the replay thread alone, read by any."""

    def __init__(self) -> None:
        self.taken = 0
        """Requests taken from the queue."""
        self.replayed = 0
        """Requests run through a model."""
        self.busy_seconds = 0.0


class Meters:
    """A meter for each model version that was replayed."""

    def __init__(self) -> None:
        self._meters: dict[ModelKey, Meter] = {}

    def of(self, key: ModelKey) -> Meter:
        """A version's meter; made by the replay thread alone."""
        return self._meters.setdefault(key, Meter())

    def read(self, key: ModelKey) -> Meter:
        """The same for reading: all zero where nothing was replayed."""
        return self._meters.get(key) or Meter()

    def keep(self, keys: Collection[ModelKey]) -> None:
        """Forgets all versions but these; for the replay thread."""
        for key in self._meters.keys() - set(keys):
            del self._meters[key]


class Throttle:
    """Keeps every version's `Sampler.rate` at what the budgets allow."""

    def __init__(
        self,
        governors: Governors,
        samplers: Samplers,
        queue: Queue,
        meters: Meters,
        duty: Duty,
        metrics: AgentMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._governors = governors
        self._samplers = samplers
        self._queue = queue
        self._meters = meters
        self._duty = duty
        self._metrics = metrics
        self._clock = clock
        self._said: dict[ModelKey, float] = {}
        self._others = 0.0
        self._last = self._worked()
        first = self._read()
        governors.step(clock(), first, self._allowed())
        self._recent: deque[dict[ModelKey, Reading]] = deque([first], maxlen=_RECENT_STEPS + 1)
        metrics.target_sample_ratio.set(samplers.rate)
        metrics.effective_sample_ratio.set(samplers.rate)

    def run(self, stop: threading.Event) -> None:
        """Sets the rates once a second until stopped."""
        while not stop.wait(_STEP_SECONDS):
            self.step()

    def step(self) -> None:
        """Sets the rates once."""
        readings = self._read()
        rates = self._governors.step(self._clock(), readings, self._allowed())
        self._export(readings, rates)
        self._recent.append(readings)
        for key in self._said.keys() - rates.keys():  # versions that have gone
            del self._said[key]
            self._metrics.model_sample_ratio.remove(*key)
        for key, rate in rates.items():
            self._samplers.of(key).rate = rate
            said = self._said.setdefault(key, self._samplers.rate)
            if not _WORTH_SAYING < rate / max(said, 1e-12) < 1 / _WORTH_SAYING:
                fill = round(readings[key].fill, 3)
                log.info("sampling.rate", model=key[0], version=key[1], rate=rate, before=said, queue_fill=fill)
                self._said[key] = rate

    def _allowed(self) -> float:
        """The share of time that replay may plan with: what other work leaves, but no less than is not kept for it."""
        limits, last = self._duty.limits, self._last
        self._last = at, used = self._worked()
        if at > last[0]:
            self._others += _MEMORY * ((used - last[1]) / (at - last[0]) - self._others)
        return max(limits.share - self._others, limits.share * (1 - limits.kept))

    def _worked(self) -> tuple[float, float]:
        """Now, and the seconds of work other than replay until now."""
        return self._clock(), sum(self._duty.used(work) for work in WORKS if work != "replay")

    def _export(self, readings: dict[ModelKey, Reading], rates: dict[ModelKey, float]) -> None:
        for key, rate in rates.items():
            self._metrics.model_sample_ratio.labels(*key).set(rate)
        former = self._recent[-1]
        arrived = {key: now.seen - former[key].seen for key, now in readings.items() if key in former}
        total = sum(arrived.values())
        if total:
            self._metrics.target_sample_ratio.set(sum(rates[key] * count for key, count in arrived.items()) / total)
        elif rates:
            self._metrics.target_sample_ratio.set(min(rates.values()))
        effective = effective_ratio(_total(self._recent[0]), _total(readings))
        if effective is not None:
            self._metrics.effective_sample_ratio.set(effective)
        elif rates:
            self._metrics.effective_sample_ratio.set(min(rates.values()))

    def _read(self) -> dict[ModelKey, Reading]:
        now = self._clock()
        return {key: self._reading(now, key) for key in self._samplers.items()}

    def _reading(self, now: float, key: ModelKey) -> Reading:
        meter, sampler, queue = self._meters.read(key), self._samplers.of(key), self._queue
        return Reading(
            now,
            sampler.seen,
            sampler.kept,
            queue.refused_of(key),
            meter.taken,
            meter.replayed,
            meter.busy_seconds,
            queue.fill_of(key),
        )


def _total(readings: dict[ModelKey, Reading]) -> Reading:
    """All versions together, as far as `effective_ratio` asks."""
    seen, replayed = (sum(getattr(one, name) for one in readings.values()) for name in ("seen", "replayed"))
    return Reading(0.0, seen, 0, 0, 0, replayed, 0.0, 0.0)
