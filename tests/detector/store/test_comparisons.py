"""Comparisons on a real Postgres: added up once, by agent, and read back summed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest

from agent.wire import sqnr_db
from deploy.local.postgres import psycopg_url
from detector.domain.types import RefusedProbe
from detector.store import AgentComparison, IngestResult, Store
from tests.detector.builders import MINUTE, START, compared, comparing, deployment, difference, window

DAY = timedelta(days=1)
END = START + 60 * MINUTE


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


def read(
    store: Store, since: datetime = START, until: datetime = END, holdouts_since: datetime = START
) -> dict[tuple[str, str], AgentComparison]:
    found = store.model_version("digits", "1")
    assert found is not None
    seen = store.comparisons(found.id, since, until, holdouts_since)
    return {(one.agent_id, one.comparison.kind): one for one in seen}


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(psycopg_url(url)) as connection:
        return connection.execute(statement.encode()).fetchall()


def test_comparisons_add_up_over_windows_and_batches_but_not_over_agents(store: Store) -> None:
    first = compared(top1_agree=97, probes=(difference(served=(1, 0, 0, 0)), difference("fc1", 2, sqnr_db=8)))
    second = compared(START + MINUTE, top1_agree=90, mismatched=3, probes=(difference(baseline=(0, 0, 5, 0)),))
    store.ingest("t", 0, None, 2, [comparing(1, first), comparing(2, first)])
    assert store.ingest("t", 0, 2, 4, [comparing(2, first), comparing(3, second)]) == IngestResult(1, 1)
    store.ingest("t", 0, 4, 5, [comparing(1, first, agent="agent-b")])
    found = read(store)
    assert [key[0] for key in found] == ["agent-a", "agent-b"]
    body = found["agent-a", "reference_model"].comparison
    assert (body.n, body.top1_agree, body.mismatched) == (300, 284, 3)
    assert (body.baseline, body.baseline_digest, body.provider) == ("reference.onnx", "r1", "CUDAExecutionProvider")
    assert [(item.probe.name, item.n) for item in body.probes] == [("conv1", 300), ("fc1", 200)]
    assert sqnr_db(body.probes[1]) == pytest.approx(8)
    assert body.probes[0].max_abs_error == max(item.max_abs_error for c in (first, second) for item in c.probes[:1])
    served, baseline = store.channel_activity(list(found.values()), "conv1")
    assert served.tolist() == [3, 0, 0, 0]
    assert baseline.tolist() == [0, 0, 5, 0]
    assert [len(side) for side in store.channel_activity(list(found.values()), "unknown")] == [0, 0]


def test_parts_of_a_split_comparison_make_one_row(store: Store, database_url: str) -> None:
    rest = compared(n=0, top1_n=0, top1_agree=0, probes=(difference("fc1", 2),))
    store.ingest("t", 0, None, 2, [comparing(1, compared()), comparing(2, rest)])
    assert query(database_url, "SELECT n, worst_layer FROM model_comparisons") == [(100, "conv1")]
    assert [item.probe.name for item in read(store)["agent-a", "reference_model"].comparison.probes] == ["conv1", "fc1"]


def test_only_windows_inside_the_span_are_read(store: Store) -> None:
    bodies = [compared(START + i * MINUTE) for i in range(4)]
    store.ingest("t", 0, None, 4, [comparing(i, body) for i, body in enumerate(bodies)])
    one = read(store, START + MINUTE, START + 3 * MINUTE)["agent-a", "reference_model"].comparison
    assert (one.n, one.start_ms, one.end_ms) == (200, bodies[1].start_ms, bodies[2].end_ms)
    assert [item.n for item in one.probes] == [200]
    assert read(store, END, END) == {}


def test_of_a_holdout_what_was_told_last_is_read_for_a_limited_time(store: Store) -> None:
    runs = [
        compared(START + i * MINUTE, kind="holdout", baseline="holdout.npz", accuracy_n=100, served_correct=90 + i)
        for i in range(2)
    ]
    store.ingest("t", 0, None, 2, [comparing(i, body) for i, body in enumerate(runs)])
    one = read(store, START + 9 * DAY, START + 10 * DAY, START)["agent-a", "holdout"].comparison
    assert (one.n, one.served_correct, [item.n for item in one.probes]) == (100, 91, [100])
    assert read(store, START, START + MINUTE)["agent-a", "holdout"].comparison.served_correct == 90
    assert read(store, START, END, START + 2 * MINUTE) == {}


def test_the_newest_of_a_holdout_outlives_retention(store: Store, database_url: str) -> None:
    store.maintain(START, retention_days=30, days_ahead=0)
    labels = [
        compared(START + i * MINUTE, kind="holdout", baseline="holdout.npz", accuracy_n=100, served_correct=90 + i)
        for i in range(2)
    ]
    store.ingest("t", 0, None, 2, [comparing(1, labels[0]), comparing(2, compared())])
    store.ingest("t", 0, 2, 4, [comparing(3, compared(START - DAY)), comparing(4, labels[1])])
    assert query(database_url, "SELECT count(*) FROM comparisons_20260301") == [(3,)]
    for _ in range(2):
        store.maintain(START + 40 * DAY, retention_days=30, days_ahead=0)
        assert query(database_url, "SELECT kind, accuracy FROM model_comparisons") == [("holdout", 0.91)]
        assert query(database_url, "SELECT kind, layer FROM probe_agreement") == [("holdout", "conv1")]
    again = compared(START + 39 * DAY, kind="holdout", baseline="holdout.npz", accuracy_n=100, served_correct=93)
    store.ingest("t", 0, 4, 5, [comparing(5, again)])
    store.maintain(START + 41 * DAY, retention_days=30, days_ahead=0)
    assert query(database_url, "SELECT kind, accuracy FROM model_comparisons") == [("holdout", 0.93)]


def test_a_layer_keeps_its_width_and_its_windows_describe_it(store: Store) -> None:
    store.ingest("t", 0, None, 1, [window(1)])
    narrow = compared(probes=(difference(served=(0,) * 3, baseline=(0,) * 3), difference("fc1", 2)))
    refused = (RefusedProbe("digits", "1", "conv1", 3, 4),)
    assert store.ingest("t", 0, 1, 2, [comparing(20, narrow)]) == IngestResult(1, 0, refused)
    assert [item.probe.name for item in read(store)["agent-a", "reference_model"].comparison.probes] == ["fc1"]
    two = [compared(probes=(difference("x", 9, served=(0,) * k, baseline=(0,) * k),)) for k in (2, 3)]
    batch = [comparing(21 + i, body) for i, body in enumerate(two)]
    assert store.ingest("t", 0, 2, 3, batch).refused == (RefusedProbe("digits", "1", "x", 3, 2),)
    assert read(store)["agent-a", "reference_model"].comparison.n == 300, "the comparisons themselves count"
    # A position of another release, and no counts by channel: neither changes what windows said.
    body = compared(probes=(difference("conv1", 7, served=(), baseline=()), difference("y", 8)))
    store.ingest("t", 0, 3, 4, [comparing(2, body)])
    found = store.model_version("digits", "1")
    assert found is not None
    assert [(p.name, p.position, p.channels) for p in store.probes(found.id)] == [
        ("conv1", 1, 4), ("fc1", 2, 4), ("y", 8, 4), ("x", 9, 2),
    ]  # fmt: skip


def test_batches_mix_with_windows_and_deployments(store: Store) -> None:
    batch = [deployment(1), comparing(2, compared()), window(3), comparing(4, compared(kind="cpu_provider"))]
    assert store.ingest("t", 0, None, 4, batch) == IngestResult(4, 0)
    assert set(read(store)) == {("agent-a", "reference_model"), ("agent-a", "cpu_provider")}


def test_concurrent_partitions_count_everything_once(store: Store) -> None:
    def feed(partition: int) -> None:
        for i in range(10):
            body = compared(probes=(difference(served=(1, 0, 0, 0)),))
            batch = [comparing(i, body, agent=f"own-{partition}"), comparing(100 + i, body, agent="both")]
            store.ingest("t", partition, i or None, i + 1, batch)

    threads = [threading.Thread(target=feed, args=(partition,)) for partition in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read(store)
    assert {key[0]: one.comparison.n for key, one in found.items()} == {
        "both": 1000, "own-0": 1000, "own-1": 1000, "own-2": 1000,
    }  # fmt: skip
    assert store.channel_activity(list(found.values()), "conv1")[0].tolist() == [40, 0, 0, 0]


def test_views_tell_ratios_and_differing_channels(store: Store, database_url: str) -> None:
    body = compared(
        kind="holdout", baseline="holdout.npz", top1_agree=95, accuracy_n=100, served_correct=90, baseline_n=100,
        baseline_correct=93, only_served_correct=1, only_baseline_correct=4, mismatched=2,
        probes=(difference(served=(2, 0, 0, 0), baseline=(1, 0, 3, 0)), difference("fc1", 2, sqnr_db=8.1),
                difference("same", 3, sqnr_db=np.inf)),
    )  # fmt: skip
    store.ingest("t", 0, None, 1, [comparing(1, body)])
    assert query(database_url, "SELECT reference FROM model_comparisons") == [("reference.onnx",)]
    assert read(store)["agent-a", "holdout"].comparison.reference == "reference.onnx"
    columns = "top1_agreement, accuracy, baseline_accuracy, accuracy_delta, mismatch_share, worst_layer, worst_sqnr_db"
    assert query(database_url, f"SELECT {columns} FROM model_comparisons") == [
        (0.95, 0.9, 0.93, -0.03, 0.02, "fc1", pytest.approx(8.1))
    ]
    rows = query(
        database_url,
        "SELECT layer, sqnr_db, cosine, channels, channels_differing FROM probe_agreement ORDER BY position",
    )
    assert [(row[0], row[3], row[4]) for row in rows] == [("conv1", 4, 2), ("fc1", 4, 0), ("same", 4, 0)]
    assert [row[1] for row in rows] == [pytest.approx(30), pytest.approx(8.1), np.inf]
    assert [row[2] for row in rows] == pytest.approx([(1 + 10**-3) ** -0.5, (1 + 10**-0.81) ** -0.5, 1])
