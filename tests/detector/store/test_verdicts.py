"""Checks, findings, runbooks and alerts, and what the views say of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.rows import dict_row

from deploy.local.postgres import psycopg_url
from detector.domain.finding import ChannelEvidence, Check, Finding
from detector.store import AlertRow, Runbook, Store
from tests.detector.builders import MINUTE, START, summary, window

HOUR = timedelta(hours=1)
RUNBOOK = Runbook("ReluscopeDeadNeurons", 1, "abc", "# ReluscopeDeadNeurons\n", "critical", "dead_neurons", "ml")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    store.ingest("t", 0, None, 1, [window(1), window(2, version="2")])
    yield store
    store.close()


def version_id(store: Store, version: str = "1") -> int:
    found = store.model_version("digits", version)
    assert found is not None
    return found.id


def rows(url: str, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(psycopg_url(url), row_factory=dict_row) as connection:
        return connection.execute(query.encode()).fetchall()


DEAD = Finding(
    layer="conv1",
    kind="activation",
    position=1,
    test="dead",
    cause="dead_neurons",
    severity="critical",
    origin=True,
    channels=(0, 3),
    channels_total=4,
    statistic=math.inf,
    p_value=1e-12,
    effect=0.31,
    n=480,
    n_reference=1000,
    summary="2 of 4 channels fell silent",
    alert="ReluscopeDeadNeurons",
    evidence=(ChannelEvidence(3, "newly_dead", math.inf, 1e-12, 0.31, 470, 990, "NaN"),),
    details={"needed": 73, "nested": [1.5, math.inf]},
)
DRIFT = replace(
    DEAD, layer="fc1", position=2, test="drift", cause="model_change", severity="warning", origin=False, evidence=(),
    channels=(1,), alert="ReluscopeActivationDrift",
)  # fmt: skip


def check(version: int, at: int = 0, findings: tuple[Finding, ...] = (), reference: int | None = None) -> Check:
    return Check(
        model_version_id=version,
        reference_id=reference,
        started_at=START + at * MINUTE,
        finished_at=START + at * MINUTE + timedelta(seconds=1),
        window_start=START,
        window_end=START + MINUTE,
        n=480,
        status="findings" if findings else "ok",
        note="",
        layers={"conv1": {"newly_dead": 2, "channels": 4}},
        findings=findings,
    )


def test_a_check_comes_back_as_it_was(store: Store) -> None:
    reference = store.save_reference(
        version_id(store), "windows", version_id(store), START, START + MINUTE, 20, {"conv1": summary()}
    )
    full = check(version_id(store), findings=(DEAD, DRIFT), reference=reference)
    saved = store.save_check(full, {"ReluscopeDeadNeurons": 1})
    (found,) = store.checks(version_id(store), START, 10)
    assert (found.id, found.model, found.version) == (saved, "digits", "1")
    assert found.check == full


def test_numpy_numbers_are_taken(store: Store) -> None:
    finding = replace(DEAD, channels=(int(np.int64(2)),), p_value=np.float64(0.5), details={"psi": np.float32(0.25)})
    store.save_check(replace(check(version_id(store), findings=(finding,)), layers={"a": {"b": np.int64(3)}}), {})  # type: ignore[dict-item]
    (found,) = store.checks(version_id(store), START, 1)
    assert found.check.findings[0].details == {"psi": 0.25}
    assert found.check.layers == {"a": {"b": 3}}


def test_checks_are_found_by_age(store: Store) -> None:
    for at in (1, 3, 2):
        store.save_check(check(version_id(store), at), {})
    store.save_check(check(version_id(store, "2"), 1, (DEAD,)), {})
    assert [c.check.started_at for c in store.checks(version_id(store), START, 2)] == [
        START + 3 * MINUTE,
        START + 2 * MINUTE,
    ]
    assert len(store.checks(version_id(store), START + 3 * MINUTE, 9)) == 1
    latest = {c.version: c.check for c in store.latest_checks(START)}
    assert latest["1"].started_at == START + 3 * MINUTE
    assert latest["2"].findings == (DEAD,)
    assert [c.version for c in store.latest_checks(START + 2 * MINUTE)] == ["1"]
    assert store.latest_checks(START + HOUR) == []


def test_runbooks_are_kept_as_first_registered(store: Store) -> None:
    store.register_runbook(RUNBOOK)
    store.register_runbook(replace(RUNBOOK, body="changed", sha256="other"))
    store.register_runbook(replace(RUNBOOK, version=2))
    assert store.runbook("ReluscopeDeadNeurons", 1) == RUNBOOK
    assert store.runbook("ReluscopeDeadNeurons", 3) is None
    assert [r.version for r in store.runbooks()] == [1, 2]


def alert(**changes: Any) -> AlertRow:
    base = AlertRow(
        fingerprint="f1",
        alertname="ReluscopeDeadNeurons",
        status="firing",
        severity="critical",
        model="digits",
        version="1",
        layer="conv1",
        cause="dead_neurons",
        starts_at=START,
        ends_at=None,
        labels={"alertname": "ReluscopeDeadNeurons"},
        annotations={"summary": "2 channels"},
        runbook_name="ReluscopeDeadNeurons",
        runbook_version=1,
        received_at=START + MINUTE,
    )
    return replace(base, **changes)


def test_a_resolution_updates_the_alert_and_stays(store: Store) -> None:
    store.save_alert(alert())
    resolved = alert(status="resolved", ends_at=START + HOUR, runbook_version=2, received_at=START + HOUR)
    store.save_alert(resolved)
    store.save_alert(alert())  # a late repetition
    # Pinned to what on-call saw at first, and received then.
    assert store.alerts(START) == [replace(resolved, runbook_version=1, received_at=START + MINUTE)]


def test_alerts_are_found_by_age(store: Store) -> None:
    store.save_alert(alert(fingerprint="old", status="resolved", ends_at=START + MINUTE))
    store.save_alert(alert(fingerprint="burning"))
    store.save_alert(alert(fingerprint="new", starts_at=START + 2 * HOUR, runbook_name=None, runbook_version=None))
    assert [a.fingerprint for a in store.alerts(START + HOUR)] == ["burning", "new"]
    assert len(store.alerts(START)) == 3


def test_dead_channels_view(store: Store, database_url: str) -> None:
    store.save_check(check(version_id(store), findings=(DEAD, DRIFT)), {"ReluscopeDeadNeurons": 4})
    found = rows(database_url, "SELECT * FROM dead_channels ORDER BY channel")
    assert [(r["layer"], r["channel"], r["label"], r["n"], r["n_reference"]) for r in found] == [
        ("conv1", 0, None, 480, 1000),
        ("conv1", 3, "newly_dead", 470, 990),
    ]
    assert [(r["p_value"], r["text"], r["runbook_version"]) for r in found] == [(None, None, 4), (1e-12, "NaN", 4)]
    for counts, label in (((2, 0), "newly_dead"), ((0, 2), "dormant"), ((1, 1), None)):
        details = dict(zip(("newly_dead", "dormant"), counts, strict=True)) | {"compared_with": "Mondays 08:00 UTC"}
        finding = replace(DEAD, evidence=(), details=details)
        saved = store.save_check(check(version_id(store), findings=(finding,)), {})
        found = rows(database_url, f"SELECT label, compared_with FROM dead_channels WHERE check_id = {saved}")
        assert [(r["label"], r["compared_with"]) for r in found] == [(label, "Mondays 08:00 UTC")] * 2


def test_drift_findings_view(store: Store, database_url: str) -> None:
    reference = store.save_reference(
        version_id(store), "previous_version", version_id(store, "2"), START, START + MINUTE, 20, {}
    )
    store.save_check(check(version_id(store), findings=(DEAD, DRIFT), reference=reference), {})
    (found,) = rows(database_url, "SELECT * FROM drift_findings")
    assert (found["layer"], found["channels_changed"], found["channels_total"]) == ("fc1", 1, 4)
    assert (found["reference_origin"], found["reference_version"]) == ("previous_version", "2")


def test_alert_timeline_view_shows_the_text_that_on_call_saw(store: Store, database_url: str) -> None:
    store.register_runbook(RUNBOOK)
    store.register_runbook(replace(RUNBOOK, version=2, body="newer"))
    store.save_alert(alert(status="resolved", ends_at=START + HOUR))
    (found,) = rows(database_url, "SELECT * FROM alert_timeline")
    assert found["runbook_body"] == RUNBOOK.body
    assert found["duration"] == HOUR
    assert found["summary"] == "2 channels"


def test_layer_health_view(store: Store, database_url: str) -> None:
    content = summary(seed=1)
    found = rows(database_url, "SELECT * FROM layer_health WHERE version = '1' ORDER BY position")
    assert [(r["layer"], r["n"], r["channels"]) for r in found] == [("conv1", 20, 4), ("fc1", 20, 4)]
    assert found[0]["active_share"] == pytest.approx(content.active.sum() / 80)
    assert found[0]["silent_channels"] == int((content.active == 0).sum()) == 1
    assert found[0]["mean"] == pytest.approx(content.mean.mean())
