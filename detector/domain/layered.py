"""Windows merged by layer, with what their differences say of how much they prove."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from agent.summary import Summary, merge
from detector.domain.batches import Span
from detector.statistics import sparsity
from detector.statistics.design_effect import DesignEffect, Estimator

log = structlog.get_logger()
PROGRESS_SECONDS = 10.0
"""Between two lines in the log on a long reading."""

Windows = Iterable[Mapping[str, Summary]]


@dataclass(frozen=True, slots=True)
class Layered:
    """A frozen set of requests; both mappings are by layer."""

    summaries: Mapping[str, Summary]
    effects: Mapping[str, DesignEffect]


def layered(windows: Callable[[], Windows]) -> Layered:
    """Merges windows and estimates their design effects; ``windows`` gives them anew at each of two calls.

    Raises ValueError where a layer's widths differ.
    """
    merged: dict[str, Summary] = {}
    for window in windows():
        for name, summary in window.items():
            merged[name] = merge(merged[name], summary) if name in merged else summary
    estimators = {name: Estimator(summary) for name, summary in merged.items()}
    zeros = {name: sparsity.Estimator(summary) for name, summary in merged.items()}
    for window in windows():
        for name, summary in window.items():
            estimators[name].add(summary)
            zeros[name].add(summary)
    effects = {name: replace(one.result(), sparsity=zeros[name].result()) for name, one in estimators.items()}
    return Layered(merged, effects)


class Reader:
    """Layers groups of stored windows, one group at a time, and logs how far a long reading has come.

    A window is read again rather than kept, twice for every group that it is in: a day of a large model's windows is
    larger than memory.
    """

    def __init__(
        self,
        read: Callable[[Span], Mapping[str, Summary]],
        to_read: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``read`` gives a window's summaries by layer; ``to_read`` is how many windows all groups have together."""
        self._read, self._clock = read, clock
        self._reads, self._all_reads, self._told = 0, 2 * to_read, clock()

    def layered(self, group: Sequence[Span]) -> Layered:
        """Of one group, in order of time; raises ValueError where a layer's widths differ."""
        return layered(lambda: map(self._next, group))

    def _next(self, span: Span) -> Mapping[str, Summary]:
        if (now := self._clock()) - self._told >= PROGRESS_SECONDS:
            self._told = now
            log.info("reference.progress", windows_read=self._reads, windows_to_read=self._all_reads)
        self._reads += 1
        return self._read(span)
