"""Model versions, references and locks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from detector.store import ModelVersion, Store
from tests.detector.builders import MINUTE, START, deployment, probe, same, summary, window

HOUR = timedelta(hours=1)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


def get(store: Store, version: str | None, model: str = "digits") -> ModelVersion:
    found = store.model_version(model, version)
    assert found is not None
    return found


def name(version: ModelVersion | None) -> str | None:
    return None if version is None else f"{version.model}@{version.version}"


def test_versions_have_recent_windows(store: Store) -> None:
    store.ingest(
        "t",
        0,
        None,
        1,
        [
            deployment(1, START - HOUR),
            window(2, START),
            window(3, START + 9 * MINUTE),
            window(4, START + HOUR, version="2"),
            deployment(5, START, model="silent"),
        ],
    )
    found = store.versions(START + 10 * MINUTE - MINUTE / 2)
    assert [name(v) for v in found] == ["digits@1", "digits@2"]
    assert found[0].first_seen == found[0].deployed_at == START - HOUR
    assert found[0].last_window_end == START + 10 * MINUTE
    assert found[1].deployed_at is None
    assert found[1].first_seen == START + HOUR
    assert [name(v) for v in store.versions(START + 10 * MINUTE)] == ["digits@2"]
    assert get(store, None, "silent").last_window_end is None


def test_first_seen_does_not_depend_on_the_order_of_arrival(store: Store) -> None:
    store.ingest("t", 0, None, 1, [window(2, START)])
    store.ingest("t", 0, 1, 2, [deployment(1, START - HOUR)])
    store.ingest("t", 0, 2, 3, [window(3, START + MINUTE)])
    assert get(store, "1").first_seen == START - HOUR


def test_the_newest_version_is_the_one_deployed_last(store: Store) -> None:
    store.ingest("t", 0, None, 1, [deployment(1), deployment(2, START + HOUR, version="2", digest="d2")])
    assert get(store, None).version == "2"
    store.ingest("t", 0, 1, 2, [deployment(3, START + 2 * HOUR)])  # rolled back
    assert get(store, None).version == "1"
    assert get(store, "2").digest == "d2"
    assert store.model_version("digits", "3") is None
    assert store.model_version("other", None) is None


def test_a_version_name_used_again_is_another_version(store: Store) -> None:
    store.ingest("t", 0, None, 1, [deployment(1), deployment(2, START + HOUR, digest="other")])
    assert get(store, "1").digest == "other"
    assert name(store.previous_version(get(store, "1").id)) == "digits@1"


def test_current_versions_are_what_agents_without_heartbeats_deployed_last(store: Store) -> None:
    def current(minutes: int) -> list[str | None]:
        return [name(v) for v in store.current_versions(START + minutes * MINUTE)]

    def deploy(seq: int, minutes: int, version: str, agent: str = "agent-a") -> None:
        told = deployment(seq, START + minutes * MINUTE, version=version, digest=version, agent=agent)
        store.ingest("t", seq, None, 1, [told])

    deploy(1, 0, "1")
    assert current(0) == ["digits@1"]
    deploy(2, 1, "1", "agent-b")
    store.ingest("t", 99, None, 1, [deployment(99, model="m", agent="x")])
    deploy(3, 2, "2")
    assert current(2) == ["digits@1", "digits@2", "m@1"]
    deploy(4, 3, "2", "agent-b")
    assert current(3) == ["digits@2", "m@1"]
    assert current(60) == ["digits@2", "m@1"], "nobody is heard, and nobody has taken their places"


def test_a_version_whose_agents_died_without_a_word_is_superseded_by_what_others_serve(store: Store) -> None:
    store.ingest("t", 0, None, 1, [deployment(1, digest="1"), deployment(1, agent="agent-b", digest="1")])
    store.ingest("t", 1, None, 1, [deployment(1, START + 5 * MINUTE, agent="new-pod", version="2", digest="2")])
    assert [name(v) for v in store.current_versions(START + 6 * MINUTE)] == ["digits@1", "digits@2"]
    assert [name(v) for v in store.current_versions(START + 12 * MINUTE)] == ["digits@2"]


def test_the_previous_version_is_what_ran_before(store: Store) -> None:
    times = [("1", 0), ("2", 1), ("1", 2), ("3", 3), ("3", 5), ("2", 4)]
    batch = [deployment(i, START + h * HOUR, version=v, digest=v) for i, (v, h) in enumerate(times)]
    store.ingest("t", 0, None, 1, [*batch, deployment(77, START - HOUR, model="another")])
    assert store.previous_version(get(store, "1").id) is None
    assert name(store.previous_version(get(store, "2").id)) == "digits@1"
    # 2 was rolled back before 3 came, and a later return of 2 changes nothing about that.
    assert name(store.previous_version(get(store, "3").id)) == "digits@1"
    assert store.previous_version(12345) is None


def test_probes_come_in_graph_order(store: Store) -> None:
    told = [probe("late", 9), probe("early", 0), probe("unknown", 3, channels=None)]
    store.ingest("t", 0, None, 1, [deployment(1, probes=told)])
    assert store.probes(get(store, "1").id) == [told[1], told[2], told[0]]


def test_references_replace_each_other(store: Store) -> None:
    store.ingest("t", 0, None, 1, [window(1), window(2, version="2")])
    id_, source = get(store, "1").id, get(store, "2").id
    assert store.reference(id_) is None
    assert store.references(id_) == []
    first = store.save_reference(id_, "windows", id_, START, START + MINUTE, 20, {"conv1": summary()})
    parts = {"conv1": summary(seed=4), "fc1": summary(seed=5)}
    second = store.save_reference(id_, "previous_version", source, START, START + HOUR, 40, parts)
    found = store.reference(id_)
    assert found is not None
    assert (found.id, found.origin, found.source_version_id) == (second, "previous_version", source)
    assert (found.start, found.end, found.n) == (START, START + HOUR, 40)
    assert {key: same(found.summaries[key], part) for key, part in parts.items()} == {"conv1": True, "fc1": True}
    assert [r.id for r in store.references(id_)] == [second, first]
    assert store.reference(source) is None


def test_one_process_checks_a_version_at_a_time(store: Store, database_url: str) -> None:
    other = Store(database_url)
    with store.turn(1, START, 60) as mine:
        assert mine is not None
        assert mine.before is None
        with other.turn(1, START, 60) as theirs:
            assert theirs is None
        with other.turn(2, START, 60) as free:
            assert free is not None
    with other.turn(1, START, 60) as again:  # nothing was stored, so it is still due
        assert again == mine
    with pytest.raises(KeyError), store.turn(1, START, 60):
        raise KeyError
    with other.turn(1, START, 60) as released:
        assert released is not None
    other.close()


def test_all_detectors_share_postgres_clock(store: Store) -> None:
    assert abs(store.now() - datetime.now(UTC)) < timedelta(minutes=1)
