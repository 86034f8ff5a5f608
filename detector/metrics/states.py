"""Metrics of what agents do and of what no check has seen, made from a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from detector.domain.agents import ALIVE
from detector.domain.types import Progress
from detector.metrics.families import family
from detector.metrics.snapshot import Snapshot

_MODEL = ("model", "version")
_LIVE = ("observed", "idle", "blind")


def state_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    """The state of every version that agents were heard of, and the counts of its requests."""
    states = snapshot.states
    yield family(
        "reluscope_version_state",
        "1 for the state a version is in: observed, idle, blind, no_agent, stopped or superseded.",
        (*_MODEL, "state"),
        (((*key, one.state), 1.0) for key, one in states.items()),
    )
    yield family(
        "reluscope_agents",
        "Agents that serve a version now, by state: observing, idle or blind.",
        (*_MODEL, "state"),
        (((*key, name), float(one.agents[name])) for key, one in states.items() for name in ALIVE),
    )
    yield family(
        "reluscope_last_heard_timestamp_seconds",
        "Last sign of life of any agent of a version.",
        _MODEL,
        ((key, one.heard_at.timestamp()) for key, one in states.items()),
    )
    yield family(
        "reluscope_clock_error_seconds",
        "How far the clock of an agent is ahead (negative: behind), of the version's agent that is farthest off.",
        _MODEL,
        ((key, one.clock_error_seconds) for key, one in states.items() if one.clock_error_seconds is not None),
        worst=lambda a, b: max(a, b, key=abs),
    )
    # Of versions that nobody serves any more it would stand still for ever where their topic was given up.
    yield family(
        "reluscope_ingest_complete_timestamp_seconds",
        "All that the version's partition held by then is ingested.",
        _MODEL,
        (
            ((one.model, one.version), one.complete_to.timestamp())
            for one in snapshot.progress
            if one.complete_to is not None
            and one.complete_to.timestamp()
            and states[one.model, one.version].state in _LIVE
        ),
    )
    yield _counter("checked", "Requests that checks took in, each once.", snapshot, lambda one: one.checked)
    yield _counter(
        "passed_over",
        "Requests that were too few or too old for a check.",
        snapshot,
        lambda one: one.passed_over,
    )
    yield _counter("late", "Requests that came after checks had passed their windows.", snapshot, lambda one: one.late)


def _counter(
    name: str, documentation: str, snapshot: Snapshot, count: Callable[[Progress], int]
) -> CounterMetricFamily:
    made = CounterMetricFamily(f"reluscope_{name}_requests", documentation, labels=_MODEL)
    totals: dict[tuple[str, str], int] = {}
    for one in snapshot.progress:
        key = (one.model, one.version)
        totals[key] = totals.get(key, 0) + count(one)
    for key, total in totals.items():
        made.add_metric(key, total)
    return made
