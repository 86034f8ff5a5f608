"""Paired verdicts as part of scheduled checks: in memory, and from message to runbook on a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psycopg
import pytest

from agent.wire import decode, encode
from deploy.local.postgres import psycopg_url
from detector.checks.check import CheckSettings
from detector.checks.every import run_all
from detector.ingestion.plausible import check as check_plausible
from detector.metrics import DetectorMetrics
from detector.paired import PairedSettings, extended
from detector.store import AgentComparison, Store
from tests.detector import fakes, samples
from tests.detector.alerting.test_runbooks import blocks
from tests.detector.builders import MINUTE, START, compared, comparing, deployment, difference, window
from tests.detector.metrics.test_metrics import value

NOW = START + 10 * MINUTE
RUNBOOKS = {name: 1 for name, _ in blocks("sql")}


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


def test_channels_that_went_silent_are_the_finding_and_its_evidence() -> None:
    layer = difference(n=400, sqnr_db=5, served=(1, 20, 0, 3), baseline=(2, 22, 90, 0))
    fake = fakes.FakeStore()
    version = fake.add_version("2", [])
    fake.compared[version.id] = [AgentComparison(1, "a", compared(n=400, top1_agree=300, probes=(layer,)))]
    done = extended(fake, version, PairedSettings(), NOW, samples.check(version.id), CheckSettings())
    (finding,) = done.findings
    assert (finding.channels, finding.channels_total, finding.details["channels_disagreeing"]) == ((2,), 4, 1)
    assert finding.evidence[0].text == (
        "channel 2: active only in the baseline in 90, only as served in 0 of 400 requests (net 22.5 %); p = 1.6e-27"
    )
    assert done.status == "findings"
    assert done.comparisons[0].worst == done.comparisons[0].probes[0]


def test_a_tensor_that_differs_as_a_whole_concerns_all_channels() -> None:
    fake = fakes.FakeStore()
    version = fake.add_version("2", [])
    layer = difference(n=400, sqnr_db=5, served=(1, 1, 1, 1), baseline=(1, 1, 1, 1))
    fake.compared[version.id] = [AgentComparison(1, "a", compared(n=400, top1_agree=300, probes=(layer,)))]
    (finding,) = extended(fake, version, PairedSettings(), NOW, samples.check(version.id), CheckSettings()).findings
    assert (finding.channels, finding.evidence) == ((0, 1, 2, 3), ())


def test_without_comparisons_a_check_stays_as_it_is() -> None:
    fake = fakes.FakeStore()
    version = fake.add_version("2", [])
    before = samples.check(version.id)
    assert extended(fake, version, PairedSettings(), NOW, before, CheckSettings()) is before


def fill(store: Store) -> None:
    """A version with windows, but too few for a reference; int8 that lost its signal; one bad GPU; other responses."""
    int8 = compared(
        n=312, top1_agree=281,
        probes=(difference("conv1", 1, n=312), difference("fc1", 2, n=312, sqnr_db=8.1, baseline=(0, 0, 60, 0))),
    )  # fmt: skip
    cpu = compared(kind="cpu_provider", baseline="CPUExecutionProvider", baseline_digest="", probes=())
    wrong = replace(cpu, mismatched=20, probes=(difference("conv1", 1, mismatched=20),))
    response = compared(
        kind="served_response", baseline="response", baseline_digest="", mismatched=100, top1_agree=3,
        probes=(difference("logits", 3, mismatched=100, kind="output"),),
    )  # fmt: skip
    labels = compared(
        kind="holdout", baseline="holdout.npz", n=500, top1_agree=470, accuracy_n=500, served_correct=440,
        baseline_n=500, baseline_correct=460, only_served_correct=5, only_baseline_correct=25, probes=(),
    )  # fmt: skip
    messages = [window(1), comparing(2, int8), comparing(3, cpu), comparing(4, response), comparing(5, labels)]
    messages += [comparing(1, wrong, agent="pod-x"), comparing(2, response, agent="pod-x")]
    messages = [decode(encode(message)) for message in messages]
    for message in messages:
        check_plausible(message, NOW)
    store.ingest("t", 0, None, len(messages), messages)


def test_a_version_without_a_reference_gets_paired_verdicts(store: Store) -> None:
    fill(store)
    (done,) = run_all(store, CheckSettings(), NOW, RUNBOOKS)
    assert done.status == "findings"
    assert done.note == "20 of 1000 requests for a reference"
    assert [(f.layer, f.test, f.cause, f.origin) for f in done.findings] == [
        ("conv1", "hardware", "hardware_mismatch", True),
        ("logits", "quantization", "quantization_fault", True),
        ("fc1", "quantization", "quantization_fault", True),
        ("logits", "response", "model_change", True),
    ]
    assert done.findings[0].details["agents"] == ["pod-x"]
    assert done.findings[2].channels == (2,)
    found = store.model_version("digits", "1")
    assert found is not None
    (kept,) = store.checks(found.id, START, 9)
    assert kept.check.comparisons == done.comparisons
    assert [f.summary for f in kept.check.findings] == [f.summary for f in done.findings]
    assert {one.kind: one.agents for one in done.comparisons} == {
        "cpu_provider": 2, "holdout": 1, "reference_model": 1, "served_response": 2,
    }  # fmt: skip


def test_comparisons_and_holdouts_count_for_a_limited_time_each(store: Store) -> None:
    fill(store)
    later = replace(window(9), body=window(9, NOW + 60 * MINUTE).body)
    store.ingest("t", 1, None, 1, [later])
    (done,) = run_all(store, CheckSettings(), NOW + 62 * MINUTE, {}, PairedSettings(paired_seconds=600))
    assert [(f.layer, f.details["kind"]) for f in done.findings] == [("logits", "holdout")]
    brief = PairedSettings(paired_seconds=600, holdout_seconds=600)
    (done,) = run_all(store, CheckSettings(), NOW + 63 * MINUTE, {}, brief)
    assert (done.findings, done.comparisons) == ((), ())


def test_a_withdrawn_holdout_stops_counting(store: Store) -> None:
    fill(store)
    gone = compared(START + MINUTE, kind="holdout", baseline="holdout.npz", n=0, probes=())
    store.ingest("t", 1, None, 1, [comparing(9, gone)])
    (done,) = run_all(store, CheckSettings(), NOW, RUNBOOKS)
    assert "holdout" not in {one.kind for one in done.comparisons}
    assert "holdout" not in {f.details.get("kind") for f in done.findings}


def test_accuracy_is_judged_and_exported_before_the_first_request(store: Store) -> None:
    labels = compared(
        kind="holdout", baseline="holdout.npz", n=500, top1_agree=470, accuracy_n=500, served_correct=440,
        baseline_n=500, baseline_correct=460, only_served_correct=5, only_baseline_correct=25,
    )  # fmt: skip
    store.ingest("t", 0, None, 2, [deployment(1), comparing(2, labels)])
    (done,) = run_all(store, CheckSettings(), NOW, RUNBOOKS)
    assert (done.n, done.note, [f.details["kind"] for f in done.findings]) == (0, "no recent windows", ["holdout"])
    metrics = DetectorMetrics(lambda: NOW, 3600.0)
    metrics.refresh(store, {})
    about = {"model": "digits", "version": "1"}
    assert value(metrics, "reluscope_validation_accuracy", **about) == 0.88
    # Gone with the holdout, or once another version is deployed instead.
    assert run_all(store, CheckSettings(), NOW + PairedSettings().lookback, RUNBOOKS) == []
    store.ingest("t", 0, 2, 3, [deployment(3, START + MINUTE, version="2", digest="d2")])
    assert run_all(store, CheckSettings(), NOW, RUNBOOKS) == []


def test_verdicts_are_exported(store: Store) -> None:
    fill(store)
    run_all(store, CheckSettings(), NOW, {})
    metrics = DetectorMetrics(lambda: NOW, 3600.0)
    metrics.refresh(store, {})
    about = {"model": "digits", "version": "1"}
    exported = {
        "validation_accuracy": value(metrics, "reluscope_validation_accuracy", **about),
        "quantized_accuracy_delta": value(metrics, "reluscope_quantized_accuracy_delta", **about),
        "top1_agreement": value(metrics, "reluscope_top1_agreement", **about, baseline_kind="reference_model"),
        "cpu_mismatch": value(metrics, "reluscope_mismatch_ratio", **about, baseline_kind="cpu_provider"),
        "response_mismatch": value(metrics, "reluscope_mismatch_ratio", **about, baseline_kind="served_response"),
        "conv1": value(metrics, "reluscope_probe_sqnr_db", **about, layer="conv1"),
        "fc1": value(metrics, "reluscope_probe_sqnr_db", **about, layer="fc1"),
    }
    assert exported == pytest.approx(
        {
            "validation_accuracy": 0.88, "quantized_accuracy_delta": -0.04, "top1_agreement": 281 / 312,
            "cpu_mismatch": 0.1, "response_mismatch": 1.0, "conv1": 30, "fc1": 8.1,
        }
    )  # fmt: skip
    # Only the reference model's layers: those of the response are no quantization.
    assert value(metrics, "reluscope_probe_sqnr_db", **about, layer="logits") is None


def test_infinite_ratios_survive_storage(store: Store) -> None:
    body = compared(probes=(difference("NaN", 1, sqnr_db=np.inf),))
    store.ingest("t", 0, None, 2, [window(1), comparing(2, body)])
    (done,) = run_all(store, CheckSettings(), NOW, {})
    found = store.model_version("digits", "1")
    assert found is not None
    kept = store.checks(found.id, START, 1)[0].check
    assert kept.comparisons == done.comparisons
    assert [(p.layer, p.sqnr_db) for p in kept.comparisons[0].probes] == [("NaN", np.inf)]
    assert (done.status, done.findings) == ("no_reference", ())


@pytest.mark.parametrize(
    "name", ["ReluscopeQuantizationFault", "ReluscopeHardwareMismatch", "ReluscopeServedModelMismatch"]
)
def test_the_runbooks_queries_answer(store: Store, database_url: str, name: str) -> None:
    fill(store)
    run_all(store, CheckSettings(), NOW, RUNBOOKS)
    with psycopg.connect(psycopg_url(database_url)) as connection:
        for book, statement in blocks("sql"):
            if book != name or "layer_health" in statement or "alert_timeline" in statement:
                continue
            asked = statement.replace("'MODEL'", "'digits'").replace("'VERSION'", "'1'").replace("'AGENT'", "'pod-x'")
            asked = asked.replace("now()", f"'{NOW.isoformat()}'::timestamptz")
            assert connection.execute(asked.encode()).fetchall(), asked
