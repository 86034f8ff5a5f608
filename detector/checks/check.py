"""One check: a model version's new windows against its reference, and what they add to the evidence so far."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Protocol

import structlog

from detector.checks.examine import Measured, accumulate, judge, judge_fleet, measure
from detector.checks.layer_findings import LayerResult
from detector.checks.policy import conclude
from detector.checks.taken import what_is_taken
from detector.domain.batches import Batch, cut, waiting
from detector.domain.finding import Check
from detector.domain.layered import Layered
from detector.domain.settings import CheckSettings
from detector.domain.slots import Slot, matching
from detector.domain.turns import Turn
from detector.domain.types import Advance, AlarmState, ModelVersion, Reference
from detector.domain.watermark import Ingested, closed_until
from detector.paired import ComparisonStore, PairedSettings, extended
from detector.references import choice as reference_choice
from detector.references.making import ReferenceStore
from detector.statistics.dead import LABELS
from detector.statistics.fleet import Agents
from detector.statistics.sequential import FAMILIES, AlarmEvidence, threshold, without

__all__ = ["CheckSettings", "CheckStore", "prepare", "run_all", "run_check"]

log = structlog.get_logger()
MOST_BATCHES = 60
"""Of one check. After an outage the rest is left to the checks that follow, so that no check takes for ever."""


class CheckStore(ReferenceStore, ComparisonStore, Protocol):
    """The part of the store that checks need."""

    def versions(self, since: datetime) -> list[ModelVersion]: ...
    def compared_versions(self, since: datetime) -> list[tuple[ModelVersion, datetime]]: ...
    def current_versions(self, now: datetime) -> list[ModelVersion]: ...
    def ingested(self, version_id: int, now: datetime) -> Ingested: ...
    def reference_slot(self, reference_id: int, slot: Slot) -> Layered: ...
    def agents(self, version_id: int, start: datetime, end: datetime) -> Agents: ...
    def live_agents(self, version_id: int, names: Collection[str], since: datetime) -> set[str]: ...
    def alarm_state(self, version_id: int) -> AlarmState | None: ...
    def save_check(
        self,
        check: Check,
        runbook_versions: Mapping[str, int],
        advance: Advance | None = None,
        turn: Turn | None = None,
    ) -> int: ...
    def turn(self, version_id: int, now: datetime, interval: float) -> AbstractContextManager[Turn | None]: ...


def run_all(
    store: CheckStore,
    settings: CheckSettings,
    now: datetime,
    runbook_versions: Mapping[str, int],
    paired: PairedSettings | None = None,
) -> list[Check]:
    """Checks every version that serves and is due, and stores the result; what another process is at is left to it.

    A version serves if it has recent windows or comparisons and no agent has deployed another in its place: a
    superseded version's last windows would repeat their verdict for as long as they count as recent. ``paired`` are the
    limits for comparisons with a baseline, which are judged also where there is no reference yet, and before the first
    request: a holdout runs at the deployment.

    One version's failure does not keep the others from being checked: all failures are raised together at the end,
    as an ExceptionGroup.
    """
    paired = paired or PairedSettings()
    done: list[Check] = []
    failures: list[Exception] = []
    current = store.current_versions(now)
    active = store.versions(now - timedelta(seconds=settings.active_seconds))
    observed = {version.id for version in active}
    active += [version for version, _ in store.compared_versions(now - paired.lookback) if version.id not in observed]
    for version in active:
        if version.superseded(current):
            continue
        try:
            with store.turn(version.id, now, settings.check_interval) as turn:
                if turn is None:
                    continue
                check, advance = _blank(version, now), None
                if version.id in observed:  # a silent version's last windows are judged no more
                    check, advance = prepare(store, version, settings, now)
                check = extended(store, version, paired, now, check, settings)
                store.save_check(check, runbook_versions, advance, turn)
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
    """What a check would say now; stores nothing but a reference, where it makes one."""
    return prepare(store, version, settings, now)[0]


def prepare(
    store: CheckStore, version: ModelVersion, settings: CheckSettings, now: datetime
) -> tuple[Check, Advance | None]:
    """A check, and the step of the evidence that is to be stored with it; None where there was no new batch.

    Windows are taken in once each, in order, batch by batch. The check speaks of the newest batch; where a slot of the
    reference, and not the whole, is what that was compared with, the note says so. Windows of the reference itself are
    never compared with it.
    """
    began = time.monotonic()
    empty = _blank(version, now)
    grace, wait = timedelta(seconds=settings.grace_seconds), timedelta(seconds=settings.wait_seconds)
    closed = closed_until(store.ingested(version.id, now), now, grace, wait)
    requests, windows = settings.reference_requests, settings.reference_windows
    base = reference_choice.ensure(store, version, requests, closed, windows)
    if base is None:
        n, note = reference_choice.waiting(store, version, requests, closed, windows)
        return replace(empty, n=n, note=note), None
    empty = replace(empty, reference_id=base.id, note="")
    stored = store.alarm_state(version.id)
    state = _current(stored, base, closed, settings)
    since = _since(stored, version, base, settings, closed)
    spans = store.spans(version.id, since, closed)
    batches = list(islice(cut(spans, settings.min_requests, settings.lookback_windows), MOST_BATCHES))
    if not batches and state is None:
        n = waiting(spans, settings.lookback_windows)
        note = f"{n} of {settings.min_requests} requests"
        return replace(empty, status="too_few_requests", n=n, note=note), None

    probes = store.probes(version.id)
    # Before the windows themselves are read, so that what comes meanwhile is noticed when the step is stored.
    taken = what_is_taken(store, version, base, stored, since, batches) if batches else None

    def tested(batch: Batch) -> Measured:
        current = store.summaries(version.id, batch.start, batch.end)
        slot = matching(base.slots, batch)
        before = store.reference_slot(base.id, slot) if slot else Layered(base.summaries, base.effects)
        agents = store.agents(version.id, batch.start, batch.end)
        return measure(probes, before.summaries, current, settings, before.effects, batch.n / batch.windows, agents)

    limit = threshold(settings.false_page_days)
    # A family that the release before did not know has no evidence yet.
    kept = state.families if state else {}
    evidence = {family: kept.get(family, AlarmEvidence()) for family in FAMILIES}
    for batch in batches:
        measured = tested(batch)
        evidence = _without_gone(store, version, evidence, measured, batch.end, settings)
        evidence = accumulate(evidence, measured, batch.days, settings)
    if not batches and state is not None:
        batch = state.last  # nothing new: the same is said again
        measured = tested(batch)
    results, inputs_moved = judge(measured, evidence, batch.days, settings)
    slot = matching(base.slots, batch)
    told = {"compared_with": str(slot or "the whole reference")}
    findings = tuple(
        replace(finding, details=finding.details | told | {"alarm_evidence": evidence[finding.test].level / limit})
        for finding in (*conclude(results, inputs_moved), *judge_fleet(measured, evidence["fleet"], settings))
    )
    check = replace(
        empty,
        finished_at=now + timedelta(seconds=time.monotonic() - began),
        status="findings" if findings else "ok",
        note="; ".join([*([f"compared with {slot}"] if slot else []), *measured.left_out]),
        window_start=batch.start,
        window_end=batch.end,
        n=batch.n,
        layers={result.probe.name: _counts(result) for result in results},
        findings=findings,
        alarms=_alarms(evidence, settings),
    )
    if not batches:
        return check, None
    return check, Advance(stored.last.end if stored else None, AlarmState(base.id, batch, evidence), taken)


def _blank(version: ModelVersion, now: datetime) -> Check:
    """Of a version without recent windows."""
    return Check(
        model_version_id=version.id, reference_id=None, started_at=now, finished_at=now, window_start=None,
        window_end=None, n=0, status="no_reference", note="no recent windows", layers={}, findings=(),
    )  # fmt: skip


def _current(
    stored: AlarmState | None, base: Reference, closed: datetime, settings: CheckSettings
) -> AlarmState | None:
    """What is stored, unless it is about another reference or too old to be carried on."""
    if stored is None or stored.reference_id != base.id:
        return None
    return stored if closed - stored.last.end <= timedelta(seconds=settings.lookback_seconds) else None


def _since(
    stored: AlarmState | None, version: ModelVersion, base: Reference, settings: CheckSettings, closed: datetime
) -> datetime:
    """Where the windows begin that were not used yet; the reference's own never count."""
    since = closed - timedelta(seconds=settings.lookback_seconds)
    if base.source_version_id == version.id and base.origin != "offline":
        since = max(since, base.end)
    return since if stored is None else max(since, stored.last.end)


def _without_gone(
    store: CheckStore,
    version: ModelVersion,
    evidence: dict[str, AlarmEvidence],
    measured: Measured,
    end: datetime,
    settings: CheckSettings,
) -> dict[str, AlarmEvidence]:
    """Without the agents that have sent nothing for as long as evidence lives: pods come and go under new names."""
    known = evidence["fleet"]
    absent = set(known.layers) - set(measured.fleet.agents if measured.fleet else ())
    if not absent:
        return evidence
    since = end - timedelta(seconds=settings.lookback_seconds)
    gone = absent - store.live_agents(version.id, absent, since)
    return {**evidence, "fleet": without(known, gone)} if gone else evidence


def _alarms(evidence: Mapping[str, AlarmEvidence], settings: CheckSettings) -> dict[str, dict[str, float]]:
    """By family: the evidence as a share of the threshold, and 1 for an alarm."""
    limit = threshold(settings.false_page_days)
    return {
        family: {"evidence": evidence[family].level / limit, "alarm": float(evidence[family].alarm)}
        for family in FAMILIES
    }


def _counts(result: LayerResult) -> dict[str, float]:
    """Channels by dead label, plus "drifted" (apart from the dead), "exploded", "channels"; sparsity and its band."""
    counts: dict[str, float] = dict.fromkeys(LABELS, 0)
    if result.dead is not None:
        counts |= {name: int((result.dead.labels == name).sum()) for name in LABELS}
    drifted = int((result.drifted & ~result.died).sum())
    counts |= {"drifted": drifted, "exploded": int(result.exploded.sum()), "channels": result.current.channels}
    if (zeros := result.sparsity) is not None:
        counts |= {"sparsity": zeros.value, "sparsity_low": zeros.low, "sparsity_high": zeros.high}
    return counts
