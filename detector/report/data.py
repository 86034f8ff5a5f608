"""What a report says: everything read from the store and put into words and numbers, before any HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np

from agent.summary import Summary
from agent.wire import Probe
from detector.domain.finding import Check, Finding
from detector.domain.layered import Layered
from detector.domain.slots import Slot, matching
from detector.report.words import Headline, conclude, in_order
from detector.store import AlertRow, HistoryPoint, ModelVersion, Reference, Span, StoredCheck

CHECKS = 2000
"""Checks read for one report: more than a day of one a minute."""
RECENT = 60
"""Windows that "now" means where no check says so."""


class ReportStore(Protocol):
    """The reads that a report needs; `detector.store.Store` has them."""

    def versions(self, since: datetime) -> list[ModelVersion]: ...
    def current_versions(self, now: datetime) -> list[ModelVersion]: ...
    def model_version(self, model: str, version: str | None) -> ModelVersion | None: ...
    def previous_version(self, version_id: int) -> ModelVersion | None: ...
    def probes(self, version_id: int) -> list[Probe]: ...
    def spans(self, version_id: int, start: datetime, end: datetime) -> list[Span]: ...
    def summaries(self, version_id: int, start: datetime, end: datetime) -> dict[str, Summary]: ...
    def reference(self, version_id: int) -> Reference | None: ...
    def reference_slot(self, reference_id: int, slot: Slot) -> Layered: ...
    def checks(self, version_id: int, since: datetime, limit: int) -> list[StoredCheck]: ...
    def history(self, version_id: int, start: datetime, end: datetime) -> list[HistoryPoint]: ...
    def alerts(self, since: datetime) -> list[AlertRow]: ...


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of the table of layers; None where nothing is known."""

    name: str
    kind: str
    op: str
    channels: int | None
    active: float | None
    active_reference: float | None
    mean: float | None
    mean_reference: float | None
    max: float | None
    max_reference: float | None
    sparsity: float | None
    """Share of zeros by the check shown; only of rectifiers."""
    band: tuple[float, float] | None
    """What it may be by the reference."""
    counts: Mapping[str, float] | None
    """Channels by dead label, and "drifted" and "exploded", of the check shown."""
    tests: tuple[str, ...]
    """Tests with a finding here."""
    origin: bool
    exact_zero: bool
    """Whether channels can be dead at all."""
    effect: float | None
    psi: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows of one model version."""

    version: ModelVersion
    since: datetime
    now: datetime
    probes: tuple[Probe, ...]
    reference: Reference | None
    reference_from: ModelVersion | None
    """The version whose requests the reference is made of."""
    checks: tuple[Check, ...]
    """Of the period, oldest first."""
    shown: Check | None
    """The newest check with findings, else the newest."""
    spans: tuple[Span, ...]
    history: tuple[HistoryPoint, ...]
    reference_history: tuple[HistoryPoint, ...]
    """Windows that the reference was made of, as far as they are still kept."""
    past: Mapping[str, Summary]
    """Per layer, what the check shown compared with: a slot of the reference, or the whole."""
    current: Mapping[str, Summary]
    """Per layer, over the windows of the check shown, else over the newest `RECENT`."""
    alerts: tuple[AlertRow, ...]
    layers: tuple[Layer, ...]
    verdict: Headline

    @property
    def latest(self) -> Check | None:
        """The newest check."""
        return self.checks[-1] if self.checks else None

    @property
    def compared(self) -> Check | None:
        """The check whose comparisons are shown: the one shown, else the newest that has any."""
        if self.shown is not None and self.shown.comparisons:
            return self.shown
        return next((check for check in reversed(self.checks) if check.comparisons), None)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of the check shown, origins first, then in graph order."""
        return tuple(in_order(self.shown.findings)) if self.shown else ()


class UnknownModel(LookupError):
    """No such model or version; the message lists those that there are."""


def gather(store: ReportStore, model: str, version: str | None, since: datetime, now: datetime) -> Report:
    """Reads the store; raises `UnknownModel`."""
    found = store.model_version(model, version)
    if found is None:
        raise UnknownModel(_unknown(store, model, version, now))
    checks = tuple(sorted((c.check for c in store.checks(found.id, since, CHECKS)), key=lambda c: c.finished_at))
    shown = next((c for c in reversed(checks) if c.findings), checks[-1] if checks else None)
    probes = tuple(sorted(store.probes(found.id), key=lambda p: p.position))
    reference = store.reference(found.id)
    source = _source(store, found, reference)
    spans = tuple(store.spans(found.id, since, now))
    start, end = spans[-RECENT:][0].start if spans else since, now
    if shown is not None and shown.window_start and shown.window_end:
        start, end = shown.window_start, shown.window_end
    current = store.summaries(found.id, start, end)
    past = _past(store, reference, shown)
    return Report(
        version=found,
        since=since,
        now=now,
        probes=probes,
        reference=reference,
        reference_from=source,
        checks=checks,
        shown=shown,
        spans=spans,
        history=tuple(store.history(found.id, since, now)),
        reference_history=(
            tuple(store.history(source.id, reference.start, reference.end)) if reference and source else ()
        ),
        past=past,
        current=current,
        alerts=tuple(
            sorted(
                (a for a in store.alerts(since) if a.model == found.model and a.version in (None, "", found.version)),
                key=lambda a: a.starts_at,
            )
        ),
        layers=_layers(probes, current, past, shown),
        verdict=conclude(found, since, spans, reference, checks, shown),
    )


def _unknown(store: ReportStore, model: str, version: str | None, now: datetime) -> str:
    seen = store.versions(datetime.fromtimestamp(0, UTC)) + store.current_versions(now)
    known = sorted({(v.model, v.version) for v in seen})
    mine = [v for name, v in known if name == model]
    if version is not None and (mine or store.model_version(model, None)):
        return f"model {model!r} has no version {version!r}; its versions: {', '.join(mine) or 'none with data'}"
    if not known:
        return f"unknown model {model!r}; no model has reported yet"
    return f"unknown model {model!r}; known models: {', '.join(sorted({name for name, _ in known}))}"


def _source(store: ReportStore, version: ModelVersion, reference: Reference | None) -> ModelVersion | None:
    if reference is None or reference.source_version_id in (None, version.id):
        return version
    previous = store.previous_version(version.id)
    return previous if previous and previous.id == reference.source_version_id else None


def _past(store: ReportStore, reference: Reference | None, shown: Check | None) -> Mapping[str, Summary]:
    if reference is None:
        return {}
    if shown is not None and shown.reference_id == reference.id and shown.window_start and shown.window_end:
        slot = matching(reference.slots, Span(shown.window_start, shown.window_end, shown.n))
        if slot is not None:
            return store.reference_slot(reference.id, slot).summaries
    return reference.summaries


def active_share(summary: Summary | None) -> float | None:
    """Share of (request, channel) pairs with any positive activation, None without a finite request."""
    requests = 0 if summary is None else int(summary.finite.sum())
    return float(summary.active.sum()) / requests if summary is not None and requests else None


def mean(summary: Summary | None) -> float | None:
    """Mean of the pooled mean over requests and channels, None without a finite request."""
    requests = 0 if summary is None else int(summary.finite.sum())
    return float((summary.mean * summary.finite).sum()) / requests if summary is not None and requests else None


def largest(summary: Summary | None) -> float | None:
    """The largest pooled maximum of any channel, up to its bucket's end; None without a finite request."""
    if summary is None or not summary.channels or not np.isfinite(value := float(summary.highest_max.max())):
        return None
    return value


def dead_share(check: Check, layer: str) -> float | None:
    """Share of a layer's channels that the check calls dead, at reference or newly; None where it could not tell."""
    counts = check.layers.get(layer)
    if not counts or not counts.get("channels") or "newly_dead" not in counts:
        return None
    return (counts.get("dead_at_reference", 0) + counts["newly_dead"]) / counts["channels"]


def _layers(
    probes: Sequence[Probe], current: Mapping[str, Summary], past: Mapping[str, Summary], check: Check | None
) -> tuple[Layer, ...]:
    rows = []
    for probe in probes:
        now = current.get(probe.name)
        then = past.get(probe.name)
        findings = [f for f in check.findings if f.layer == probe.name] if check else []
        drift = next((f for f in findings if f.test == "drift"), None)
        psi = drift.details.get("psi") if drift else None
        counts = check.layers.get(probe.name) if check else None
        told = counts if counts and "sparsity" in counts else None
        rows.append(
            Layer(
                name=probe.name,
                kind=probe.kind,
                op=probe.op,
                channels=probe.channels or (now.channels if now else None),
                active=active_share(now),
                active_reference=active_share(then),
                mean=mean(now),
                mean_reference=mean(then),
                max=largest(now),
                max_reference=largest(then),
                sparsity=told["sparsity"] if told else None,
                band=(told["sparsity_low"], told["sparsity_high"]) if told else None,
                counts=counts,
                tests=tuple(dict.fromkeys(f.test for f in findings)),
                origin=any(f.origin for f in findings),
                exact_zero=probe.exact_zero,
                effect=drift.effect if drift else None,
                psi=float(psi) if isinstance(psi, int | float) else None,
                p_value=drift.p_value if drift else None,
            )
        )
    return tuple(rows)
