"""Lowers the sampling rate when replay would take more than its budgets allow, and raises it again. Pure.

What the sample would take is known before it hurts: sampled requests per second times the seconds that one costs in
replay is the share of time that the sample at this rate needs. So the rate is not groped for: it is set to what keeps
the tightest budget, at once when it must fall, and in small steps, with a margin, when it may rise. Sampling is
nested, so that a lower rate only thins the sample out.

    demand = the largest of   busy share / duty cycle,   requests per second / their limit,   what the queue shows
    demand > 0.95             rate falls to a demand of 0.9, at most to a tenth in one step
    demand < 0.8              rate rises by 10 %, not beyond a demand of 0.9
    between                   rate stays: no hunting
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

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
    """What replay may take."""

    duty_cycle: float = Field(default=0.25, ge=0.001, le=1)
    """Largest share of time in replay."""
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
        self._budgets = budgets
        self._last: Reading | None = None
        self._seen_per_second: float | None = None
        self._cost: float | None = None

    @property
    def rate(self) -> float:
        return self._rate

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
        demand = sampled_per_second * (self._cost or 0.0) / self._budgets.duty_cycle
        if self._budgets.requests_per_second is not None:
            demand = max(demand, sampled_per_second / self._budgets.requests_per_second)
        if overflowed and demand <= _FALL_ABOVE:
            # Only where the sum above does not see it: requests that are few, large, or come in bursts.
            return _OVERFLOW
        if now.fill > _HALF_FULL:
            # Below what can be taken, so that the queue drains.
            return max(demand, 1.0) * (1.0 + (now.fill - _HALF_FULL))
        return demand


def effective_ratio(first: Reading, last: Reading) -> float | None:
    """The share of the requests that arrived between two readings that was replayed; None where none arrived."""
    arrived = last.seen - first.seen
    return min(1.0, (last.replayed - first.replayed) / arrived) if arrived > 0 else None


def rest_seconds(busy_seconds: float, taken: int, budgets: Budgets) -> float:
    """How long replay rests after it worked on ``taken`` requests, so that neither budget is ever exceeded."""
    rest = busy_seconds * (1 / budgets.duty_cycle - 1)
    if budgets.requests_per_second is not None:
        rest = max(rest, taken / budgets.requests_per_second - busy_seconds)
    return rest


def _averaged(before: float | None, newest: float) -> float:
    return newest if before is None else before + _MEMORY * (newest - before)
