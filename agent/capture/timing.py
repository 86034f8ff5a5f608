"""Paired timing: two runs take turns, so that a ratio holds on a machine that is busy with other things too."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

_MOST_PAIRS = 60
_FEWEST_PAIRS = 3
_SURE_PAIRS = 9
_SURE_ERROR = 0.004

Clock = Callable[[], float]


class Stopped(Exception):
    """The agent shuts down; what was being measured is of no interest any more."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much longer one run takes than another."""

    median: float
    """Of the ratios of runs that followed each other."""
    spread: float
    """Their interquartile range."""
    pairs: int
    plain_seconds: float
    """Median time of the run that is compared with."""

    @property
    def error(self) -> float:
        """How far off the median may be: its standard error, about, for ratios that scatter as a normal would."""
        return self.spread / math.sqrt(self.pairs)

    @property
    def excess(self) -> float:
        """The share added; never negative, for nothing is faster by doing more."""
        return max(0.0, self.median - 1.0)


def paired(
    plain: Callable[[], object],
    other: Callable[[], object],
    seconds: float,
    stopped: Callable[[], bool],
    clock: Clock = time.perf_counter,
) -> Ratio:
    """Times ``other`` against ``plain`` for up to ``seconds``, but three pairs at least; fewer where it is sure sooner.

    Both run once before, for the first run of a session allocates. Raises Stopped, between runs.
    """
    deadline = clock() + seconds
    for run in (plain, other):
        _timed(run, stopped, clock)
    ratios: list[float] = []
    base: list[float] = []
    while len(ratios) < _MOST_PAIRS:
        # Who comes first alternates, so that neither always finds the caches as the other left them.
        if len(ratios) % 2:
            second = _timed(other, stopped, clock)
            first = _timed(plain, stopped, clock)
        else:
            first = _timed(plain, stopped, clock)
            second = _timed(other, stopped, clock)
        base.append(first)
        ratios.append(second / max(first, 1e-9))
        if len(ratios) >= _FEWEST_PAIRS and (clock() >= deadline or _sure(ratios)):
            break
    return Ratio(statistics.median(ratios), _spread(ratios), len(ratios), statistics.median(base))


def _timed(run: Callable[[], object], stopped: Callable[[], bool], clock: Clock) -> float:
    if stopped():
        raise Stopped
    begin = clock()
    run()
    return clock() - begin


def _sure(ratios: list[float]) -> bool:
    return len(ratios) >= _SURE_PAIRS and _spread(ratios) / math.sqrt(len(ratios)) < _SURE_ERROR


def _spread(ratios: list[float]) -> float:
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (1.0, 1.0, 1.0)
    return high - low
