from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from detector.domain.types import Progress
from detector.metrics import GAP_DAYS, DetectorMetrics
from detector.store import StoredCheck, StoreUnavailable
from tests.detector.samples import NOW, MemoryStore, agent, check, finding, version

STALE = 3600.0
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def metrics(clock: Callable[[], datetime] = lambda: NOW) -> DetectorMetrics:
    return DetectorMetrics(clock, STALE, ["ReluscopeDeadNeurons"])


def samples(exported: DetectorMetrics) -> Samples:
    """Name and labels to value; a repeated series, which Prometheus would refuse, is an error."""
    found: Samples = {}
    for family in text_string_to_metric_families(exported.render().decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} is exported twice"
            found[key] = sample.value
    return found


def value(exported: DetectorMetrics, name: str, /, **labels: str) -> float | None:
    return samples(exported).get((name, frozenset(labels.items())))


def test_findings_and_ratios_of_the_latest_check() -> None:
    store = MemoryStore([version(1)], [StoredCheck(1, "digits", "2", check(1, finding(), finding("relu3", "drift")))])
    exported = metrics()
    exported.refresh(store, {"ReluscopeDeadNeurons": 4})
    about = {"model": "digits", "version": "2"}
    dead = {**about, "layer": "relu2", "test": "dead", "cause": "dead_neurons"}
    assert value(exported, "reluscope_finding_channels", **dead) == 3
    assert value(exported, "reluscope_finding_origin", **dead) == 1
    assert value(exported, "reluscope_layer_dead_ratio", **about, layer="relu2") == 0.5
    assert value(exported, "reluscope_layer_drifted_ratio", **about, layer="relu2") == 0.25
    assert value(exported, "reluscope_layer_dead_ratio", **about, layer="empty") is None
    assert value(exported, "reluscope_layer_sparsity", **about, layer="relu2") == 0.71
    assert value(exported, "reluscope_layer_sparsity_band", **about, layer="relu2", bound="low") == 0.52
    assert value(exported, "reluscope_layer_sparsity_band", **about, layer="relu2", bound="high") == 0.58
    assert value(exported, "reluscope_layer_sparsity", **about, layer="empty") is None
    assert value(exported, "reluscope_check_requests", **about) == 500
    assert value(exported, "reluscope_alarm_evidence", **about, family="drift") == 0.25
    assert value(exported, "reluscope_alarm_evidence", **about, family="dead") == 10
    assert value(exported, "reluscope_dead_ratio", **about) == 0.5
    assert value(exported, "reluscope_last_check_timestamp_seconds", **about) == NOW.timestamp()
    assert value(exported, "reluscope_last_window_timestamp_seconds", **about) == NOW.timestamp()
    assert value(exported, "reluscope_runbook_info", name="ReluscopeDeadNeurons", version="4") == 1


def test_a_version_that_is_only_compared_is_exported_for_as_long_as_that_counts() -> None:
    now = NOW
    store = MemoryStore([version(1, seen=None)], [StoredCheck(1, "digits", "2", check(1))], compared={1: NOW})
    exported = DetectorMetrics(lambda: now, STALE, paired=timedelta(seconds=60))
    exported.refresh(store, {})
    assert value(exported, "reluscope_check_requests", model="digits", version="2") == 500
    now = NOW + timedelta(seconds=61)
    assert value(exported, "reluscope_check_requests", model="digits", version="2") is None


def test_replicas_and_restarts_export_the_same_from_the_store() -> None:
    store = MemoryStore([version(1)], [StoredCheck(1, "digits", "2", check(1, finding()))])
    first, second = metrics(), metrics()
    first.refresh(store, {})
    second.refresh(store, {})
    created = {key for key in samples(first) if key[0].endswith("_created")}
    assert {k: v for k, v in samples(first).items() if k not in created} == {
        k: v for k, v in samples(second).items() if k not in created
    }


def test_stale_findings_end_even_while_the_store_is_out_of_reach() -> None:
    store, now = MemoryStore([version(1)], [StoredCheck(1, "digits", "2", check(1, finding()))]), NOW
    exported = metrics(lambda: now)
    exported.refresh(store, {})
    store.down = StoreUnavailable("gone")
    now = NOW + timedelta(seconds=STALE + 1)
    with pytest.raises(StoreUnavailable):
        exported.refresh(store, {})
    text = exported.render().decode()
    assert "reluscope_finding_channels{" not in text
    # The silence itself stays visible, or nobody would hear of it.
    assert "reluscope_last_window_timestamp_seconds{" in text


def test_one_version_name_for_two_files_is_one_series_of_the_newer_windows() -> None:
    old, new = version(1, seen=NOW - timedelta(minutes=5)), version(2)
    stored = [StoredCheck(1, "digits", "2", check(1, finding())), StoredCheck(2, "digits", "2", check(2))]
    exported = metrics()
    exported.refresh(MemoryStore([new, old], stored), {})
    assert "reluscope_finding_channels{" not in exported.render().decode()
    assert samples(exported)


def test_a_version_that_was_never_checked_counts_from_its_first_sight() -> None:
    exported = metrics()
    exported.refresh(MemoryStore([version(1)]), {})
    at = value(exported, "reluscope_last_check_timestamp_seconds", model="digits", version="2")
    assert at == (NOW - timedelta(days=1)).timestamp()


def test_a_deployment_without_windows_is_seen_and_an_abandoned_one_is_not() -> None:
    silent = version(1, model="silent", seen=None)
    long_ago = NOW - timedelta(days=GAP_DAYS, seconds=1)
    gone = version(2, model="gone", seen=long_ago, at=long_ago)
    gone = type(gone)(**{name: getattr(gone, name) for name in gone.__slots__} | {"first_seen": long_ago})
    exported = metrics()
    exported.refresh(MemoryStore([silent, gone]), {})
    name = "reluscope_last_window_timestamp_seconds"
    assert value(exported, name, model="silent", version="2") == NOW.timestamp()
    assert value(exported, name, model="gone", version="2") is None


def test_states_of_versions_and_what_no_check_saw() -> None:
    agents = [
        agent("a", "observing", clock_error_seconds=-1800.0),
        agent("b", "blind"),
        agent("c", "silent", "1", id=2, heard=NOW - timedelta(hours=2), since=NOW - timedelta(days=9)),
    ]
    seen = [Progress("digits", "2", NOW, 900, 30, 7), Progress("digits", "1", NOW, 5, 0, 0)]
    exported = metrics()
    exported.refresh(MemoryStore([version(1)], agents=agents, seen=seen), {})
    about = {"model": "digits", "version": "2"}
    assert value(exported, "reluscope_version_state", **about, state="observed") == 1
    assert value(exported, "reluscope_version_state", model="digits", version="1", state="superseded") == 1
    assert value(exported, "reluscope_agents", **about, state="blind") == 1
    assert value(exported, "reluscope_agents", **about, state="idle") == 0
    assert value(exported, "reluscope_clock_error_seconds", **about) == -1800
    assert value(exported, "reluscope_last_heard_timestamp_seconds", **about) == NOW.timestamp()
    assert value(exported, "reluscope_ingest_complete_timestamp_seconds", **about) == NOW.timestamp()
    assert value(exported, "reluscope_ingest_complete_timestamp_seconds", model="digits", version="1") is None
    counts = [
        value(exported, f"reluscope_{name}_requests_total", **about) for name in ("checked", "passed_over", "late")
    ]
    assert counts == [900, 30, 7]


def test_a_window_of_a_time_to_come_does_not_hide_a_gap() -> None:
    exported = metrics()
    exported.refresh(MemoryStore([version(1, seen=NOW + timedelta(minutes=30))]), {})
    at = value(exported, "reluscope_last_window_timestamp_seconds", model="digits", version="2")
    assert at == NOW.timestamp()


def test_counters_start_at_zero_and_foreign_alert_names_share_a_series() -> None:
    exported = metrics()
    assert value(exported, "reluscope_ingested_messages_total") == 0
    assert value(exported, "reluscope_check_errors_total") == 0
    known = {"alertname": "ReluscopeDeadNeurons", "status": "firing"}
    assert value(exported, "reluscope_alerts_received_total", **known) == 0
    for number in range(100):
        exported.alert_received(f"Foreign{number}", "firing")
    assert value(exported, "reluscope_alerts_received_total", alertname="other", status="firing") == 100
    exported.ingest_applied(3, 2)
    assert value(exported, "reluscope_duplicate_messages_total") == 2
    assert value(exported, "reluscope_last_ingest_timestamp_seconds") == NOW.timestamp()
