"""One transaction per micro-batch: offsets, keys, merging, on a real Postgres."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce

import numpy as np
import psycopg
import pytest

from agent.summary import empty, from_pooled, merge
from agent.wire import Window
from deploy.local.postgres import psycopg_url
from detector.domain.types import RefusedProbe
from detector.store import IngestResult, LostOwnership, Store, StoreError, StoreUnavailable
from tests.detector.builders import MINUTE, START, deployment, probe, same, summary, window


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


def version_id(store: Store, version: str = "1") -> int:
    found = store.model_version("digits", version)
    assert found is not None
    return found.id


def test_offsets_move_with_the_batch(store: Store) -> None:
    assert store.next_offsets("t") == {}
    assert store.ingest("t", 0, None, 3, [window(1)]) == IngestResult(1, 0)
    assert store.ingest("t", 1, None, 9, [window(2)]) == IngestResult(1, 0)
    assert store.ingest("t", 0, 3, 4, []) == IngestResult(0, 0)
    assert store.next_offsets("t") == {0: 4, 1: 9}
    assert store.next_offsets("another") == {}


def test_windows_of_a_known_version_take_no_ids(store: Store, database_url: str) -> None:
    for number in range(5):
        store.ingest("t", 0, number or None, number + 1, [window(number + 1)])
    store.ingest("t", 0, 5, 6, [window(6, version="2")])
    assert version_id(store, "2") == version_id(store) + 1


@pytest.mark.parametrize("expected", [None, 2, 4])
def test_another_owner_makes_the_batch_fail_whole(store: Store, expected: int | None) -> None:
    store.ingest("t", 0, None, 3, [])
    with pytest.raises(LostOwnership, match="t/0"):
        store.ingest("t", 0, expected, 5, [window(1)])
    assert store.next_offsets("t") == {0: 3}
    assert store.model_version("digits", None) is None


def test_messages_are_applied_once(store: Store) -> None:
    assert store.ingest("t", 0, None, 3, [window(1), window(1), window(2)]) == IngestResult(2, 1)
    assert store.ingest("t", 0, 3, 5, [window(2), window(3)]) == IngestResult(1, 1)
    # The same number after a restart of the agent is another message.
    assert store.ingest("t", 0, 5, 6, [window(1, epoch=2)]) == IngestResult(1, 0)
    stored = store.summaries(version_id(store), START, START + MINUTE)
    assert stored["conv1"].n == 80


def test_windows_merge_within_and_over_batches(store: Store) -> None:
    parts = [summary(n=10 + i, seed=i) for i in range(4)]
    first = [window(i, agent=f"agent-{i}", content=part) for i, part in enumerate(parts[:2])]
    store.ingest("t", 0, None, 2, first)
    store.ingest("t", 1, None, 2, [window(i, agent=f"agent-{i}", content=parts[i]) for i in (2, 3)])
    stored = store.summaries(version_id(store), START, START + MINUTE)
    assert list(stored) == ["conv1", "fc1"]
    assert same(stored["conv1"], reduce(merge, parts))


def test_summaries_take_only_windows_inside(store: Store) -> None:
    store.ingest("t", 0, None, 3, [window(i, START + i * MINUTE) for i in range(3)])
    id_ = version_id(store)
    assert store.summaries(id_, START, START + 2 * MINUTE)["fc1"].n == 40
    assert store.summaries(id_, START + MINUTE / 2, START + 2 * MINUTE)["fc1"].n == 20
    assert store.summaries(id_, START, START) == {}
    assert [(s.start, s.end, s.n) for s in store.spans(id_, START, START + 2 * MINUTE)] == [
        (START, START + MINUTE, 20),
        (START + MINUTE, START + 2 * MINUTE, 20),
    ]


def test_extremes_survive_storage(store: Store) -> None:
    pooled = np.array([[np.nan, 0.0], [np.nan, 1e38]])
    content = from_pooled(pooled, pooled, np.zeros((2, 2)))
    store.ingest("t", 0, None, 1, [window(1, content=content), window(2, layers=("none",), content=empty(2))])
    stored = store.summaries(version_id(store), START, START + MINUTE)
    assert same(stored["conv1"], content)
    assert same(stored["none"], empty(2))
    history = store.history(version_id(store), START, START + MINUTE)
    assert [(p.layer, p.max, p.nonfinite, p.active_share) for p in history] == [
        ("conv1", pytest.approx(1e38, rel=0.045), 2, 0.5),
        ("none", 0.0, 0, 0.0),
        ("fc1", pytest.approx(1e38, rel=0.045), 2, 0.5),
    ]


def test_history_is_about_layers(store: Store) -> None:
    content = summary()
    store.ingest("t", 0, None, 1, [window(1, content=content)])
    point = store.history(version_id(store), START, START + MINUTE)[0]
    assert (point.window_start, point.layer, point.kind, point.position, point.n) == (
        START,
        "conv1",
        "activation",
        1,
        20,
    )
    assert point.active_share == pytest.approx(content.active.sum() / 80)
    assert point.mean == pytest.approx(content.mean.mean())
    assert point.max == content.highest_max.max()


def test_agents_are_told_apart(store: Store, database_url: str) -> None:
    parts = [summary(n=10, seed=1), summary(n=30, seed=2)]
    store.ingest("t", 0, None, 3, [window(1, content=parts[0]), window(9, agent="agent-b", content=parts[1])])
    store.ingest("t", 0, 3, 4, [window(2, content=parts[1])])
    with psycopg.connect(psycopg_url(database_url)) as connection:
        rows = connection.execute(
            "SELECT agent_id, n, active_share, mean, max, nonfinite FROM agent_windows a JOIN probes p "
            "ON p.id = a.probe_id WHERE p.name = 'conv1' ORDER BY agent_id"
        ).fetchall()
    both = merge(*parts)
    assert [row[:2] for row in rows] == [("agent-a", 40), ("agent-b", 30)]
    assert rows[0][2:] == (
        pytest.approx(both.active.sum() / 160),
        pytest.approx(both.mean.mean()),
        both.highest_max.max(),
        0,
    )


def test_a_layer_keeps_its_width(store: Store) -> None:
    """A layer of another width costs itself alone: its message, its batch and its model keep everything else."""
    store.ingest("t", 0, None, 1, [window(1)])
    good, bad = window(2).body, window(2, content=summary(channels=7)).body
    assert isinstance(good, Window)
    assert isinstance(bad, Window)
    wide = replace(window(2), body=replace(good, probes=(bad.probes[0], good.probes[1])))
    refused = (RefusedProbe("digits", "1", "conv1", 7, 4),)
    assert store.ingest("t", 0, 1, 2, [wide, window(3)]) == IngestResult(2, 0, refused)
    mixed = [window(4, START + MINUTE, layers=("x",)), window(5, layers=("x",), content=summary(channels=7))]
    assert store.ingest("t", 0, 2, 3, mixed).refused == (RefusedProbe("digits", "1", "x", 7, 4),)
    stored = store.summaries(version_id(store), START, START + 2 * MINUTE)
    assert {name: one.n for name, one in stored.items()} == {"conv1": 40, "fc1": 60, "x": 20}
    assert store.next_offsets("t") == {0: 3}


def test_a_width_is_learned_from_the_first_window(store: Store) -> None:
    store.ingest("t", 0, None, 1, [deployment(1, probes=[probe("conv1", 1, channels=None)])])
    assert [p.channels for p in store.probes(version_id(store))] == [None]
    store.ingest("t", 0, 1, 2, [window(2)])
    assert [(p.name, p.channels) for p in store.probes(version_id(store))] == [("conv1", 4), ("fc1", 4)]
    store.ingest("t", 0, 2, 3, [deployment(3, probes=[probe("conv1", 5, channels=None)])])
    assert [(p.name, p.channels, p.position) for p in store.probes(version_id(store))] == [
        ("fc1", 4, 2),
        ("conv1", 4, 5),
    ]


def test_concurrent_partitions_of_one_model_merge_all(store: Store) -> None:
    def feed(partition: int) -> None:
        expected = None
        for i in range(10):
            batch = [window(i, agent=f"agent-{partition}"), window(i, agent="both", epoch=i)]
            store.ingest("t", partition, expected, i + 1, batch)
            expected = i + 1

    threads = [threading.Thread(target=feed, args=(partition,)) for partition in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.next_offsets("t") == {0: 10, 1: 10, 2: 10}
    # Three agents of their own and one whose every message came over all partitions.
    assert store.summaries(version_id(store), START, START + MINUTE)["conv1"].n == 4 * 10 * 20


def test_of_two_owners_one_wins(store: Store) -> None:
    outcomes: list[object] = []

    def own(agent: str) -> None:
        try:
            outcomes.append(store.ingest("t", 0, None, 5, [window(1, agent=agent)]))
        except LostOwnership as error:
            outcomes.append(error)

    threads = [threading.Thread(target=own, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["IngestResult", "LostOwnership"]
    assert store.summaries(version_id(store), START, START + MINUTE)["conv1"].n == 20


def test_an_unreachable_server_is_named_without_its_password() -> None:
    store = Store("postgresql+psycopg://me:hunter2@127.0.0.1:9/db")
    with pytest.raises(StoreUnavailable) as caught:
        store.ping()
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_wrong_url_is_refused_without_repeating_it() -> None:
    for url in ("hunter2", "mysql://me:hunter2@h/db"):
        with pytest.raises(StoreError) as caught:
            Store(url)
        assert "hunter2" not in str(caught.value)


def test_an_empty_database_asks_for_migration(empty_database_url: str) -> None:
    store = Store(empty_database_url)
    with pytest.raises(StoreError, match="reluscope migrate"):
        store.ping()
    with pytest.raises(StoreError, match="reluscope migrate"):
        store.next_offsets("t")
    store.close()
