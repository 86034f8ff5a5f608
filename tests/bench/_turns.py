"""Contenders that take turns in random order, and the figures of their paired ratios."""

from __future__ import annotations

import math
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.bench._sessions import Feeds

MIN_ROUNDS = 7
MIN_SLOW_ROUNDS = 3
TURN_SECONDS = 0.03  # a shorter turn is repeated: a wake-up of another process would be half of it


class _Clock:
    """Seconds of one contender's turns, on the wall and on all of this process's threads."""

    def __init__(self, once: Callable[[Feeds], int]) -> None:
        self.once = once
        self.repeats = 1
        self.wall: dict[int, float] = {}
        self.cpu: dict[int, float] = {}

    def turn(self, number: int, inputs: Feeds) -> float:
        """Seconds of the whole turn."""
        cpu, begun = _cpu_seconds(), time.perf_counter()
        for _ in range(self.repeats):
            self.once(inputs)
        taken = time.perf_counter() - begun
        self.wall[number] = taken / self.repeats
        self.cpu[number] = (_cpu_seconds() - cpu) / self.repeats
        return taken

    def warm_up(self, inputs: Feeds) -> None:
        self.turn(0, inputs)  # allocates
        self.repeats = max(1, math.ceil(TURN_SECONDS / self.turn(0, inputs)))
        self.wall.clear()
        self.cpu.clear()


def take_turns(
    contenders: dict[str, Callable[[Feeds], int]], batches: Sequence[Feeds], *, rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Times all contenders; the first is what the others' ratios refer to.

    Every round runs each once, in random order, on one of ``batches``. Rounds go on until there are ``rounds`` of them,
    or ``seconds`` have passed and there are at least 7. A contender that has used up its equal part of the seconds
    stays out of later rounds once it has run in 3, so that a slow one does not starve the others. Returns by contender
    the median ``seconds``, ``ratio`` with its ``quartiles``, ``cpu_ratio``, and the number of ``rounds``.
    """
    order = random.Random(0)
    clocks = {name: _Clock(once) for name, once in contenders.items()}
    first = next(iter(clocks))
    for clock in clocks.values():
        clock.warm_up(batches[0])
    begun, used = time.perf_counter(), dict.fromkeys(clocks, 0.0)
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - begun > seconds:
            break
        for name in order.sample(list(clocks), len(clocks)):
            spent = used[name] > seconds / len(clocks) and len(clocks[name].wall) >= MIN_SLOW_ROUNDS
            if name == first or number < MIN_SLOW_ROUNDS or not spent:
                used[name] += clocks[name].turn(number, batches[number % len(batches)])
    return {name: _figures(clock, clocks[first]) for name, clock in clocks.items()}


def _figures(clock: _Clock, base: _Clock) -> dict[str, Any]:
    ratios = [taken / base.wall[number] for number, taken in clock.wall.items()]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    cpu = statistics.median(taken / base.cpu[number] for number, taken in clock.cpu.items())
    return {
        "seconds": statistics.median(clock.wall.values()),
        "ratio": round(ratio, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "cpu_ratio": round(cpu, 3),
        "rounds": len(ratios),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
