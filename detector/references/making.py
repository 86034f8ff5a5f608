"""Makes references: of a version's first, chosen or newest windows, of a calibration run, or of another version's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from agent.summary import Summary
from agent.wire import LayerKinship, Probe, Window
from detector.domain.batches import Span, disjoint
from detector.domain.layered import Layered, Reader, layered
from detector.domain.slots import WEEKDAY_DATES, Slot, covered
from detector.domain.types import Decision, ModelVersion, Origin, Reference, ReferencePolicy
from detector.references.size import Need, shortfall
from detector.statistics.design_effect import DesignEffect


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
        slots: Iterable[tuple[Slot, Layered]],
        slots_of: int | None,
        decision: Decision | None,
        as_read: bool,
    ) -> int: ...
    def reference_with_id(self, reference_id: int) -> Reference | None: ...
    def reference_policy(self, model: str) -> ReferencePolicy: ...
    def kinship(self, version_id: int, former_digest: str) -> dict[str, LayerKinship]: ...
    def previous_version(self, version_id: int) -> ModelVersion | None: ...
    def probes(self, version_id: int) -> list[Probe]: ...
    def spans(self, version_id: int, start: datetime, end: datetime) -> list[Span]: ...
    def summaries(self, version_id: int, start: datetime, end: datetime) -> dict[str, Summary]: ...


class NoReference(Exception):
    """A reference cannot be made; the message says what is missing."""


def from_first_requests(
    store: ReferenceStore,
    version: ModelVersion,
    requests: int,
    until: datetime,
    need: Need | None = None,
    weekday_dates: int = WEEKDAY_DATES,
    windows: int = 1,
    decision: Decision | None = None,
) -> Reference:
    """Makes a reference of the first ``requests`` requests, in ``windows`` windows or more; raises NoReference where
    there are fewer.

    With ``need`` it is refused, too, where it would hide the shift that must show. An hour of a weekday with windows on
    ``weekday_dates`` dates gets a reference of its own.
    """
    spans = store.spans(version.id, version.first_seen, until)
    first = _first_spans(spans, requests, windows)
    if first is None:
        raise NoReference(
            f"{version.model}@{version.version} has {seen(spans, requests, windows)}: wait, or ask for fewer"
        )
    return _from_spans(store, version, "first_requests", first, need, weekday_dates, decision)


def from_windows(
    store: ReferenceStore,
    version: ModelVersion,
    start: datetime,
    end: datetime,
    need: Need | None = None,
    weekday_dates: int = WEEKDAY_DATES,
    decision: Decision | None = None,
) -> Reference:
    """Makes a reference of the windows inside [start, end]; raises NoReference where there are none.

    ``need`` and ``weekday_dates`` are as in `from_first_requests`.
    """
    if not start < end:
        raise NoReference(f"the span is empty: {start.isoformat()} to {end.isoformat()}")
    spans = store.spans(version.id, start, end)
    if not sum(span.n for span in spans):
        raise NoReference(
            f"{version.model}@{version.version} has no requests in windows between "
            f"{start.isoformat()} and {end.isoformat()}"
        )
    return _from_spans(store, version, "windows", spans, need, weekday_dates, decision)


def from_newest(
    store: ReferenceStore,
    version: ModelVersion,
    requests: int,
    windows: int,
    since: datetime,
    until: datetime,
    decision: Decision,
    need: Need | None = None,
    weekday_dates: int = WEEKDAY_DATES,
) -> Reference:
    """Accepts the present as normal: makes a reference of the newest windows between ``since`` and ``until``, as few as
    hold ``requests`` requests in ``windows`` windows; raises NoReference where there are fewer.

    ``need`` and ``weekday_dates`` are as in `from_first_requests`.
    """
    spans = store.spans(version.id, since, until)
    newest = _first_spans(spans[::-1], requests, windows)
    if newest is None:
        raise NoReference(
            f"{version.model}@{version.version} has {seen(spans, requests, windows)} since "
            f"{since.isoformat(timespec='seconds')}: wait, or ask for fewer"
        )
    return _from_spans(store, version, "accepted", newest[::-1], need, weekday_dates, decision)


def from_offline(
    store: ReferenceStore,
    version: ModelVersion,
    windows: Sequence[Window],
    need: Need | None = None,
    decision: Decision | None = None,
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
        whole = layered(lambda: parts)
    except ValueError as error:
        raise NoReference(f"the run's windows do not fit together: {error}") from error
    start, end = (datetime.fromtimestamp(at / 1000, UTC) for at in (windows[0].start_ms, windows[-1].end_ms))
    n = max(summary.n for summary in whole.summaries.values())
    _refuse_if_small(n, whole, need)
    return _save(store, version.id, "offline", version.id, start, end, n, whole, decision=decision)


def adopt(
    store: ReferenceStore, version: ModelVersion, source: Reference, origin: Origin, decision: Decision | None = None
) -> Reference:
    """Makes a copy of another version's reference, its slots included."""
    whole = Layered(source.summaries, source.effects)
    return _save(
        store, version.id, origin, source.source_version_id, source.start, source.end, source.n, whole,
        slots_of=source.id, decision=decision,
    )  # fmt: skip


def same_probes(a: Sequence[Probe], b: Sequence[Probe]) -> bool:
    """Whether two versions' activations are comparable channel by channel, as far as the models tell."""
    ours, theirs = ({(p.name, p.kind, p.exact_zero): p.channels for p in probes} for probes in (a, b))
    return ours.keys() == theirs.keys() and all(
        channels is None or theirs[key] is None or channels == theirs[key] for key, channels in ours.items()
    )


def seen(spans: Sequence[Span], requests: int, windows: int) -> str:
    """How far the first requests of a version have come to be a reference: what there is too little of."""
    total, full = sum(span.n for span in spans), sum(span.n > 0 for span in spans)
    return f"{total} of {requests} requests" if total < requests else f"{full} of {windows} windows"


def _first_spans(spans: list[Span], requests: int, windows: int) -> list[Span] | None:
    total = full = 0
    for count, span in enumerate(spans, start=1):
        total, full = total + span.n, full + (span.n > 0)
        if total >= requests and full >= windows:
            return spans[:count]
    return None


def _from_spans(
    store: ReferenceStore,
    version: ModelVersion,
    origin: Origin,
    spans: Sequence[Span],
    need: Need | None,
    weekday_dates: int,
    decision: Decision | None,
) -> Reference:
    """Of all the windows, and of those of each slot that they cover well enough."""
    spans = disjoint(spans)  # else a short window inside a long one would count twice
    groups = covered(spans, weekday_dates)
    reader = Reader(
        lambda span: store.summaries(version.id, span.start, span.end), len(spans) + sum(map(len, groups.values()))
    )
    whole, n = reader.layered(spans), sum(span.n for span in spans)
    _refuse_if_small(n, whole, need)
    # Made as they are saved: together the slots of a large model, up to 192 times the whole, would not fit in memory.
    slots = ((slot, reader.layered(inside)) for slot, inside in groups.items())
    start, end = spans[0].start, max(span.end for span in spans)
    return _save(store, version.id, origin, version.id, start, end, n, whole, slots, decision=decision, as_read=True)


def _refuse_if_small(n: int, whole: Layered, need: Need | None) -> None:
    if need is not None and (why := shortfall(n, whole.effects, need)) is not None:
        raise NoReference(why)


def _save(
    store: ReferenceStore,
    version_id: int,
    origin: Origin,
    source: int,
    start: datetime,
    end: datetime,
    n: int,
    whole: Layered,
    slots: Iterable[tuple[Slot, Layered]] = (),
    slots_of: int | None = None,
    decision: Decision | None = None,
    as_read: bool = False,
) -> Reference:
    store.save_reference(
        version_id, origin, source, start, end, n, whole.summaries, whole.effects, slots, slots_of, decision, as_read
    )
    saved = store.reference(version_id)
    if saved is None:
        raise NoReference(f"the reference of model version {version_id} vanished as it was saved")
    return saved
