"""What a model version's windows are compared with: the choice of its reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Protocol

import numpy as np

from agent.summary import Summary, merge
from agent.wire import Probe, Window
from detector.batches import Span
from detector.design_effect import DesignEffect, Estimator
from detector.drift import REFERENCE_RISK, tolerance
from detector.store.types import ModelVersion, Origin, Reference


class ReferenceStore(Protocol):
    """The part of the store that references need."""

    def reference(self, version_id: int) -> Reference | None: ...
    def save_reference(
        self,
        version_id: int,
        origin: Origin,
        source_version_id: int,
        start: datetime,
        end: datetime,
        n: int,
        summaries: Mapping[str, Summary],
        effects: Mapping[str, DesignEffect],
    ) -> int: ...
    def previous_version(self, version_id: int) -> ModelVersion | None: ...
    def probes(self, version_id: int) -> list[Probe]: ...
    def spans(self, version_id: int, start: datetime, end: datetime) -> list[Span]: ...
    def summaries(self, version_id: int, start: datetime, end: datetime) -> dict[str, Summary]: ...


@dataclass(frozen=True, slots=True)
class Need:
    """What a reference must be good for."""

    effect: float
    """Cohen's omega of the smallest shift that must show."""
    min_effect: float

    def __post_init__(self) -> None:
        if not 0 <= self.min_effect < self.effect:
            raise ValueError(f"the effect {self.effect} must be above the tolerated one, {self.min_effect}")


class NoReference(Exception):
    """A reference cannot be made; the message says what is missing."""


def ensure(store: ReferenceStore, version: ModelVersion, requests: int, until: datetime) -> Reference | None:
    """The version's reference, made if there is none yet; None where it cannot be made yet.

    A version that replaces another with the same probes is compared with that one's reference, so that a bad
    deployment is seen at once. Any other waits for its own first ``requests`` requests in windows closed by ``until``.
    """
    existing = store.reference(version.id)
    if existing is not None:
        return existing
    for make in (from_previous, from_first_requests):
        with suppress(NoReference):
            return make(store, version, requests, until)
    return None


def from_previous(store: ReferenceStore, version: ModelVersion, requests: int, until: datetime) -> Reference:
    """Adopts the reference of the version before; raises NoReference where there is none or the probes differ."""
    previous = store.previous_version(version.id)
    if previous is None:
        raise NoReference(f"{version.model}@{version.version} has no version before it")
    if not same_probes(store.probes(previous.id), store.probes(version.id)):
        raise NoReference(f"the probes of {previous.version} and {version.version} differ")
    source = ensure(store, previous, requests, until)
    if source is None:
        raise NoReference(f"version {previous.version} has no reference")
    return _save(
        store,
        version.id,
        "previous_version",
        source.source_version_id,
        source.start,
        source.end,
        source.n,
        source.summaries,
        source.effects,
    )


def from_first_requests(
    store: ReferenceStore, version: ModelVersion, requests: int, until: datetime, need: Need | None = None
) -> Reference:
    """Makes a reference of the first ``requests`` requests; raises NoReference where there are fewer.

    With ``need`` it is refused, too, where it would hide the shift that must show.
    """
    span = _first_spans(store, version, requests, until)
    if span is None:
        seen = sum(one.n for one in store.spans(version.id, version.first_seen, until))
        raise NoReference(
            f"{version.model}@{version.version} has {seen} of {requests} requests in closed windows: "
            "wait, or ask for fewer"
        )
    return _from_spans(store, version, "first_requests", span, need)


def from_windows(
    store: ReferenceStore, version: ModelVersion, start: datetime, end: datetime, need: Need | None = None
) -> Reference:
    """Makes a reference of the windows inside [start, end]; raises NoReference where there are none.

    With ``need`` it is refused, too, where it would hide the shift that must show.
    """
    if not start < end:
        raise NoReference(f"the span is empty: {start.isoformat()} to {end.isoformat()}")
    spans = store.spans(version.id, start, end)
    if not sum(span.n for span in spans):
        raise NoReference(
            f"{version.model}@{version.version} has no requests in windows between "
            f"{start.isoformat()} and {end.isoformat()}"
        )
    return _from_spans(store, version, "windows", spans, need)


def from_offline(
    store: ReferenceStore, version: ModelVersion, windows: Sequence[Window], need: Need | None = None
) -> Reference:
    """Makes a reference of a calibration run's windows; raises NoReference where its layers are not the version's.

    With ``need`` it is refused, too, where it would hide the shift that must show.
    """
    parts = [{item.probe.name: item.summary for item in window.probes} for window in windows]
    missing = {probe.name for probe in store.probes(version.id)} ^ {name for part in parts for name in part}
    if missing:
        raise NoReference(
            f"the run and {version.model}@{version.version} differ in layers: {', '.join(sorted(missing))}"
        )
    try:
        summaries = {name: reduce(merge, [part[name] for part in parts if name in part]) for name in parts[0]}
    except ValueError as error:
        raise NoReference(f"the run's windows do not fit together: {error}") from error
    start, end = (datetime.fromtimestamp(at / 1000, UTC) for at in (windows[0].start_ms, windows[-1].end_ms))
    n = max(summary.n for summary in summaries.values())
    return _make(store, version, "offline", start, end, n, summaries, parts, need)


def same_probes(a: Sequence[Probe], b: Sequence[Probe]) -> bool:
    """Whether two versions' activations are comparable channel by channel, as far as the models tell."""
    ours, theirs = ({(p.name, p.kind, p.exact_zero): p.channels for p in probes} for probes in (a, b))
    return ours.keys() == theirs.keys() and all(
        channels is None or theirs[key] is None or channels == theirs[key] for key, channels in ours.items()
    )


def _first_spans(store: ReferenceStore, version: ModelVersion, requests: int, until: datetime) -> list[Span] | None:
    spans = store.spans(version.id, version.first_seen, until)
    total = 0
    for count, span in enumerate(spans, start=1):
        total += span.n
        if total >= requests:
            return spans[:count]
    return None


def _from_spans(
    store: ReferenceStore, version: ModelVersion, origin: Origin, spans: Sequence[Span], need: Need | None
) -> Reference:
    start, end = spans[0].start, max(span.end for span in spans)

    def windows() -> Iterator[Mapping[str, Summary]]:
        return (store.summaries(version.id, span.start, span.end) for span in spans)

    n = sum(span.n for span in spans)
    return _make(store, version, origin, start, end, n, store.summaries(version.id, start, end), windows(), need)


def _make(
    store: ReferenceStore,
    version: ModelVersion,
    origin: Origin,
    start: datetime,
    end: datetime,
    n: int,
    summaries: Mapping[str, Summary],
    windows: Iterable[Mapping[str, Summary]],
    need: Need | None,
) -> Reference:
    """Learns from how the windows differ how much less they say than independent requests would, and stores all."""
    estimators = {name: Estimator(summary) for name, summary in summaries.items()}
    for window in windows:
        for name, summary in window.items():
            estimators[name].add(summary)
    effects = {name: estimator.result() for name, estimator in estimators.items()}
    if need is not None:
        _refuse_if_small(n, effects, need)
    return _save(store, version.id, origin, version.id, start, end, n, summaries, effects)


def requests_needed(need: Need, design_effect: float) -> int:
    """Requests from which on a reference lets a shift of ``need.effect`` show, in six bins."""
    few, many = 1.0, 2.0
    bins = np.array([5])

    def hides(n: float) -> bool:
        base = np.array([n / design_effect])
        return bool(tolerance(need.min_effect, bins, base, REFERENCE_RISK)[0] >= need.effect)

    while hides(many):
        few, many = many, many * 2
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if hides(middle) else (few, middle)
    return int(many)


def _refuse_if_small(n: int, effects: Mapping[str, DesignEffect], need: Need) -> None:
    worst = max([1.0, *(float(np.median(effect.values)) for effect in effects.values() if len(effect.values))])
    needed = requests_needed(need, worst)
    if n < needed:
        raise NoReference(
            f"{n} requests are too few: with a design effect of {worst:.2f} a reference that lets a shift of omega "
            f"{need.effect:g} show needs {needed}; {needed - n} more, or state a larger --effect"
        )


def _save(
    store: ReferenceStore,
    version_id: int,
    origin: Origin,
    source: int,
    start: datetime,
    end: datetime,
    n: int,
    summaries: Mapping[str, Summary],
    effects: Mapping[str, DesignEffect],
) -> Reference:
    store.save_reference(version_id, origin, source, start, end, n, summaries, effects)
    saved = store.reference(version_id)
    if saved is None:
        raise NoReference(f"the reference of model version {version_id} vanished as it was saved")
    return saved
