"""One check: a model version's new windows against its reference, and what they add to the evidence so far."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice

from detector.checks.against import Against
from detector.checks.examine import Measured, judge, judge_fleet
from detector.checks.layer_findings import LayerResult
from detector.checks.needs import CheckStore
from detector.checks.policy import conclude
from detector.checks.taken import what_is_taken
from detector.domain.batches import Batch, cut, waiting
from detector.domain.finding import Check
from detector.domain.settings import CheckSettings
from detector.domain.slots import matching
from detector.domain.types import Advance, AlarmState, ModelVersion, Reference
from detector.domain.watermark import closed_until
from detector.references import choice as reference_choice
from detector.statistics.dead import LABELS
from detector.statistics.sequential import FAMILIES, AlarmEvidence, threshold

__all__ = ["MOST_BATCHES", "CheckSettings", "blank", "prepare", "run_check"]

MOST_BATCHES = 60
"""Of one check. After an outage the rest is left to the checks that follow, so that no check takes for ever."""


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
    empty = blank(version, now)
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

    # Before the windows themselves are read, so that what comes meanwhile is noticed when the step is stored.
    taken = what_is_taken(store, version, base, stored, since, batches) if batches else None
    against = Against(store, version, base, settings)
    batch, measured, evidence = against.taken_in(state, batches)
    check = _told(against, batch, measured, evidence, empty)
    check = replace(check, finished_at=now + timedelta(seconds=time.monotonic() - began))
    if not batches:
        return check, None
    return check, Advance(stored.last.end if stored else None, AlarmState(base.id, batch, evidence), taken)


def _told(
    against: Against, batch: Batch, measured: Measured, evidence: Mapping[str, AlarmEvidence], empty: Check
) -> Check:
    """What a check says of its newest batch, with the evidence that this one is part of."""
    settings, slot = against.settings, matching(against.base.slots, batch)
    results, inputs_moved = judge(measured, evidence, batch.days, settings)
    limit = threshold(settings.false_page_days)
    told = {"compared_with": str(slot or "the whole reference")}
    findings = tuple(
        replace(finding, details=finding.details | told | {"alarm_evidence": evidence[finding.test].level / limit})
        for finding in (*conclude(results, inputs_moved), *judge_fleet(measured, evidence["fleet"], settings))
    )
    return replace(
        empty,
        status="findings" if findings else "ok",
        note="; ".join([*([f"compared with {slot}"] if slot else []), *measured.left_out]),
        window_start=batch.start,
        window_end=batch.end,
        n=batch.n,
        layers={result.probe.name: _counts(result) for result in results},
        findings=findings,
        alarms=_alarms(evidence, settings),
    )


def blank(version: ModelVersion, now: datetime) -> Check:
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
    if base.made_of(version.id):
        since = max(since, base.end)
    return since if stored is None else max(since, stored.last.end)


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
