"""One check: a model version's newest windows against its reference."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import numpy as np
import structlog

from agent.summary import Summary
from agent.wire import Probe
from detector import reference_choice
from detector.correction import reject_together
from detector.dead import LABELS, Dead, dead, label, requests_needed
from detector.drift import Drift, drift
from detector.explosion import Explosion, explosion
from detector.finding import Check
from detector.paired import ComparisonStore, PairedSettings, extended
from detector.policy import LayerResult, Verdict, conclude
from detector.store.types import ModelVersion, Reference, Span

log = structlog.get_logger()


class CheckStore(reference_choice.ReferenceStore, ComparisonStore, Protocol):
    """The part of the store that checks need."""

    def versions(self, since: datetime) -> list[ModelVersion]: ...
    def current_versions(self) -> list[ModelVersion]: ...
    def save_check(self, check: Check, runbook_versions: Mapping[str, int]) -> int: ...
    def try_model_lock(self, version_id: int) -> AbstractContextManager[bool]: ...


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """What the user decides about checks."""

    fdr: float = 0.001
    """Share of false channels among those reported, per check and test."""
    min_effect: float = 0.1
    """Cohen's omega up to which a shift does not matter."""
    min_requests: int = 200
    lookback_windows: int = 12
    """Newest closed windows that may be joined to reach ``min_requests``."""
    lookback_seconds: float = 86_400.0
    """Windows older than this are not joined."""
    reference_requests: int = 1000
    """Requests after a deployment that make the automatic reference."""
    min_active_rate: float = 0.01
    """Channels active more seldom than this in the reference are not called dead."""
    grace_seconds: float = 5.0
    """How long after its end a window may still receive late summaries."""
    explosion_factor: float = 10.0
    active_seconds: float = 3600.0
    """Versions without a window for this long are not checked any more."""

    def __post_init__(self) -> None:
        bounds = {
            "fdr": 0 < self.fdr < 1,
            "min_effect": self.min_effect >= 0,
            "min_requests": self.min_requests >= 1,
            "lookback_windows": self.lookback_windows >= 1,
            "lookback_seconds": self.lookback_seconds > 0,
            "reference_requests": self.reference_requests >= 1,
            "min_active_rate": 0 < self.min_active_rate < 1,
            "grace_seconds": self.grace_seconds >= 0,
            "explosion_factor": self.explosion_factor > 1,
            "active_seconds": self.active_seconds > 0,
        }
        wrong = [f"{name} = {getattr(self, name)}" for name, good in bounds.items() if not good]
        if wrong:
            raise ValueError(f"check settings out of range: {', '.join(wrong)}")


def run_all(
    store: CheckStore,
    settings: CheckSettings,
    now: datetime,
    runbook_versions: Mapping[str, int],
    paired: PairedSettings | None = None,
) -> list[Check]:
    """Checks every version that serves and stores the result, except those that another process is checking.

    A version serves if it has recent windows and no agent has deployed another in its place: a superseded version's
    last windows would repeat their verdict for as long as they count as recent. ``paired`` are the limits for
    comparisons with a baseline, which are judged also where there is no reference yet.

    One version's failure does not keep the others from being checked: all failures are raised together at the end,
    as an ExceptionGroup.
    """
    paired = paired or PairedSettings()
    done: list[Check] = []
    failures: list[Exception] = []
    current = store.current_versions()
    for version in store.versions(now - timedelta(seconds=settings.active_seconds)):
        if version.superseded(current):
            continue
        try:
            with store.try_model_lock(version.id) as mine:
                if not mine:
                    continue
                check = extended(store, version, paired, now, run_check(store, version, settings, now))
                store.save_check(check, runbook_versions)
        except Exception as error:
            log.error("check.failed", model=version.model, version=version.version, error=str(error), exc_info=True)
            failures.append(error)
            continue
        done.append(check)
        log.info(
            "check.finished",
            model=version.model,
            version=version.version,
            status=check.status,
            requests=check.n,
            findings=len(check.findings),
        )
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(failures) + len(done)} checks failed", failures)
    return done


def run_check(store: CheckStore, version: ModelVersion, settings: CheckSettings, now: datetime) -> Check:
    """Compares the newest closed windows that hold enough requests with the reference; stores nothing but that.

    Windows of the reference itself are never compared with it.
    """
    began = time.monotonic()

    def finish(status: Status, note: str = "", **fields: Any) -> Check:
        values: dict[str, Any] = {
            "reference_id": None, "window_start": None, "window_end": None, "n": 0, "layers": {}, "findings": ()
        }  # fmt: skip
        ended = now + timedelta(seconds=time.monotonic() - began)
        return Check(
            model_version_id=version.id, started_at=now, finished_at=ended, status=status, note=note, **values | fields
        )

    closed = now - timedelta(seconds=settings.grace_seconds)
    base = reference_choice.ensure(store, version, settings.reference_requests, closed)
    if base is None:
        seen = sum(span.n for span in store.spans(version.id, version.first_seen, closed))
        return finish("no_reference", f"{seen} of {settings.reference_requests} requests for a reference", n=seen)
    spans = _newest(_spans(store, version, base, settings, closed), settings)
    n = sum(span.n for span in spans)
    if n < settings.min_requests:
        return finish("too_few_requests", f"{n} of {settings.min_requests} requests", reference_id=base.id, n=n)
    start, end = spans[0].start, spans[-1].end
    results, left_out, inputs_moved = examine(
        store.probes(version.id), base.summaries, store.summaries(version.id, start, end), settings
    )
    findings = conclude(results, inputs_moved)
    return finish(
        "findings" if findings else "ok",
        "; ".join(left_out),
        reference_id=base.id,
        window_start=start,
        window_end=end,
        n=n,
        layers={result.probe.name: _counts(result) for result in results},
        findings=findings,
    )


Status = Literal["ok", "findings", "no_reference", "too_few_requests"]


def examine(
    probes: Sequence[Probe], before: Mapping[str, Summary], now: Mapping[str, Summary], settings: CheckSettings
) -> tuple[list[LayerResult], list[str], bool]:
    """Tests every layer, with the false discovery rate held over all channels of all layers, test by test.

    Returns the results in graph order, sentences on layers that could not be compared, and whether a test of the
    inputs alone finds a shift: that one only helps to tell the cause, and raises no finding of its own.
    """
    left_out: list[str] = []
    compared: list[Probe] = []
    for probe in sorted(probes, key=lambda probe: probe.position):
        old, new = before.get(probe.name), now.get(probe.name)
        if old is None or new is None:
            left_out.append(f"{probe.name} not compared: no data in the {'reference' if old is None else 'windows'}")
        elif old.channels != new.channels:
            left_out.append(f"{probe.name} not compared: {new.channels} channels, the reference has {old.channels}")
        else:
            compared.append(probe)
    drifts = {p.name: drift(before[p.name], now[p.name], settings.min_effect) for p in compared}
    explosions = {p.name: explosion(before[p.name], now[p.name], settings.explosion_factor) for p in compared}
    deaths = {p.name: dead(before[p.name], now[p.name], settings.min_active_rate) for p in compared if p.exact_zero}
    drifted = reject_together({name: result.p_value for name, result in drifts.items()}, settings.fdr)
    exploded = reject_together({name: result.p_value for name, result in explosions.items()}, settings.fdr)
    fallen = reject_together({name: result.p_value[result.eligible] for name, result in deaths.items()}, settings.fdr)
    inputs = {p.name: drifts[p.name].p_value for p in compared if p.kind == "input"}
    moved = any(bool(mask.any()) for mask in reject_together(inputs, settings.fdr).values())
    level = settings.fdr / max(1, sum(int(result.eligible.sum()) for result in deaths.values()))

    def result(p: Probe, change: Drift, burst: Explosion, death: Dead | None) -> LayerResult:
        verdict = None
        if death is not None:
            rejected = np.zeros(len(death.p_value), np.bool_)
            rejected[death.eligible] = fallen[p.name]
            verdict = Verdict(death, label(death, rejected), requests_needed(death.lower, level))
        return LayerResult(
            probe=p,
            reference=before[p.name],
            current=now[p.name],
            drift=change,
            drifted=drifted[p.name],
            explosion=burst,
            exploded=exploded[p.name],
            dead=verdict,
        )

    return (
        [result(p, drifts[p.name], explosions[p.name], deaths.get(p.name)) for p in compared],
        left_out,
        moved,
    )


def _spans(
    store: CheckStore, version: ModelVersion, base: Reference, settings: CheckSettings, closed: datetime
) -> list[Span]:
    """Closed windows of the lookback, ascending; only those after the reference where that is this version's own."""
    since = closed - timedelta(seconds=settings.lookback_seconds)
    if base.source_version_id == version.id:
        since = max(since, base.end)
    return store.spans(version.id, since, closed)


def _newest(spans: Sequence[Span], settings: CheckSettings) -> list[Span]:
    """As few of the newest windows as hold ``min_requests``."""
    taken: list[Span] = []
    total = 0
    for span in reversed(spans[-settings.lookback_windows :]):
        if total >= settings.min_requests:
            break
        taken.append(span)
        total += span.n
    return taken[::-1]


def _counts(result: LayerResult) -> dict[str, int]:
    """Channels by dead label, plus "drifted" (apart from the dead), "exploded" and "channels"."""
    counts = dict.fromkeys(LABELS, 0)
    if result.dead is not None:
        counts |= {name: int((result.dead.labels == name).sum()) for name in LABELS}
    drifted = int((result.drifted & ~result.died).sum())
    return counts | {"drifted": drifted, "exploded": int(result.exploded.sum()), "channels": result.current.channels}
