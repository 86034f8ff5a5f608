"""Lowers the sampling rate when replay would take more than its budgets allow, and raises it again. Pure.

What the sample would take is known before it hurts: sampled requests per second times the seconds that one costs in
replay is the share of time that the sample at this rate needs. So the rate is not groped for: it is set to what keeps
the tightest budget, at once when it must fall, and in small steps, with a margin, when it may rise. Sampling is
nested, so that a lower rate only thins the sample out.

    demand = the largest of   busy share / duty cycle,   requests per second / their limit,   what the queue shows
    demand > 0.95             rate falls to a demand of 0.9, at most to a tenth in one step
    demand < 0.8              rate rises by 10 %, not beyond a demand of 0.9
    between                   rate stays: no hunting

Each model version has a rate of its own. What one may take is a level, the same for all: the light take less, and what
they leave goes to the heavy. So traffic or slow runs of one thin out its own sample, and no other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from agent.budget.shares import ModelKey, level
from agent.options import SECTION, Option

_AIM = 0.9
_FALL_ABOVE = 0.95
_RISE_BELOW = 0.8
_RISE = 1.1
_LARGEST_FALL = 0.1
_OVERFLOW = 2.0
_HALF_FULL = 0.5
_MEMORY = 0.5
"""Weight of the newest step in the averages: a change of load is known after some three steps."""


@settings(frozen=True, slots=True, config=SECTION)
class Budgets:
    """What replay may take: all of it, or that of one model version."""

    duty_cycle: float = Field(default=0.25, ge=0.001, le=1)
    """Largest share of time in work of all kinds: replay, comparing, holdouts, timing."""
    requests_per_second: Annotated[float | None, Field(gt=0), Option("max_requests_per_second", default="no limit")] = (
        None
    )
    """Most requests that are replayed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counts since the start, and the state of the queue, at one moment."""

    at: float
    """Seconds, of a clock that only goes forward."""
    seen: int
    """Requests that arrived."""
    kept: int
    """Requests that sampling chose."""
    refused: int
    """Those that the queue had no room for."""
    taken: int
    """Those that replay took from the queue."""
    replayed: int
    """Those that ran through the model."""
    busy_seconds: float
    """Time spent on those taken."""
    fill: float
    """How full the queue is, 0 to 1."""


class Governor:
    """Decides the sampling rate, once a second or so, from readings."""

    def __init__(self, rate: float, budgets: Budgets) -> None:
        """``rate`` is the one that the user set: never exceeded."""
        self._most = rate
        self._rate = rate
        self.allow(budgets.duty_cycle, budgets.requests_per_second)
        self._last: Reading | None = None
        self._seen_per_second: float | None = None
        self._cost: float | None = None

    @property
    def rate(self) -> float:
        return self._rate

    @property
    def wanted(self) -> tuple[float, float]:
        """What the rate that the user set would take: the share of time, and requests per second."""
        per_second = (self._seen_per_second or 0.0) * self._most
        return per_second * (self._cost or 0.0), per_second

    def allow(self, duty_cycle: float, requests_per_second: float | None) -> None:
        """What may be taken from now on."""
        self._duty_cycle = duty_cycle
        self._requests_per_second = requests_per_second

    def step(self, now: Reading) -> float:
        """The sampling rate from now on."""
        last, self._last = self._last, now
        if last is None or now.at <= last.at:
            return self._rate
        seconds = now.at - last.at
        # Of all that arrive, not of the sampled: what the sample will be is then known for any rate.
        self._seen_per_second = _averaged(self._seen_per_second, (now.seen - last.seen) / seconds)
        if now.taken > last.taken:
            self._cost = _averaged(self._cost, (now.busy_seconds - last.busy_seconds) / (now.taken - last.taken))
        demand = self._demand(now, overflowed=now.refused > last.refused)
        if demand > _FALL_ABOVE:
            self._rate *= max(_LARGEST_FALL, _AIM / demand)
        elif demand < _RISE_BELOW:
            self._rate = min(self._most, self._rate * min(_RISE, _AIM / max(demand, 1e-9)))
        return self._rate

    def _demand(self, now: Reading, overflowed: bool) -> float:
        sampled_per_second = (self._seen_per_second or 0.0) * self._rate
        demand = sampled_per_second * (self._cost or 0.0) / self._duty_cycle
        if self._requests_per_second is not None:
            demand = max(demand, sampled_per_second / self._requests_per_second)
        if overflowed and demand <= _FALL_ABOVE:
            # Only where the sum above does not see it: requests that are few, large, or come in bursts.
            return _OVERFLOW
        if now.fill > _HALF_FULL:
            # Below what can be taken, so that the queue drains.
            return max(demand, 1.0) * (1.0 + (now.fill - _HALF_FULL))
        return demand


class Governors:
    """A governor for each model version, and what each is allowed."""

    def __init__(self, rate: float, budgets: Budgets) -> None:
        """``rate`` and ``budgets`` are the user's: of every version, and of all together."""
        self._rate = rate
        self._budgets = budgets
        self._governors: dict[ModelKey, Governor] = {}
        self._at: float | None = None

    def step(self, at: float, readings: Mapping[ModelKey, Reading], duty_cycle: float) -> dict[ModelKey, float]:
        """The sampling rates from now, ``at`` (seconds), on, where replay may take ``duty_cycle`` of the time."""
        for key in self._governors.keys() - readings.keys():
            del self._governors[key]
        for key in readings:
            if key not in self._governors:
                self._governors[key] = Governor(self._rate, self._budgets)
                if self._at is not None:  # it began since
                    self._governors[key].step(Reading(self._at, 0, 0, 0, 0, 0, 0.0, 0.0))
        self._at = at
        wanted = {key: governor.wanted for key, governor in self._governors.items()}
        time_level = level({key: busy for key, (busy, _) in wanted.items()}, duty_cycle)
        requests = self._budgets.requests_per_second
        if requests is not None:
            requests = level({key: per_second for key, (_, per_second) in wanted.items()}, requests)
        for governor in self._governors.values():
            governor.allow(time_level, requests)
        return {key: self._governors[key].step(reading) for key, reading in readings.items()}


def effective_ratio(first: Reading, last: Reading) -> float | None:
    """The share of the requests that arrived between two readings that was replayed; None where none arrived."""
    arrived = last.seen - first.seen
    return min(1.0, (last.replayed - first.replayed) / arrived) if arrived > 0 else None


def _averaged(before: float | None, newest: float) -> float:
    return newest if before is None else before + _MEMORY * (newest - before)
