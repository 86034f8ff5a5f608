"""Windows merged by layer, with what their differences say of how much they prove; by hour of the day if covered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, timedelta

from agent.summary import Summary, merge
from detector import sparsity
from detector.batches import Batch, Span
from detector.design_effect import DesignEffect, Estimator

HOUR_REQUESTS = 1000
HOUR_WINDOWS = 3
"""What an hour of the day needs for a reference of its own."""
LEAST_SPAN = timedelta(hours=24)
"""A reference that is shorter has seen no hour but in passing, and none again."""

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


def hours(spans: Sequence[Span]) -> dict[int, list[Span]]:
    """The windows of each hour of the day (UTC) that has enough of them; windows across a full hour belong to none.

    Empty where the spans cover less than `LEAST_SPAN`.
    """
    if not spans or max(span.end for span in spans) - spans[0].start < LEAST_SPAN:
        return {}
    found: dict[int, list[Span]] = {}
    for span in spans:
        if (hour := hour_of(span)) is not None:
            found.setdefault(hour, []).append(span)
    return {
        hour: inside
        for hour, inside in sorted(found.items())
        if len(inside) >= HOUR_WINDOWS and sum(span.n for span in inside) >= HOUR_REQUESTS
    }


def hour_of(span: Span | Batch) -> int | None:
    """The hour of the day, UTC, in which a span lies; None where it lies in several."""
    start, last = span.start.astimezone(UTC), (span.end - timedelta(microseconds=1)).astimezone(UTC)
    same = (start.date(), start.hour) == (last.date(), last.hour)
    return start.hour if same else None
