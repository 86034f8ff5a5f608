"""Daily partitions: made ahead, filled from the default one, dropped by retention."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from deploy.local.postgres import psycopg_url
from detector.store import Store
from detector.store.locks import MAINTENANCE
from tests.detector.builders import MINUTE, START, window

DAY = timedelta(days=1)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


def counts(url: str, parent: str = "windows") -> dict[str, int]:
    with psycopg.connect(psycopg_url(url)) as connection:
        query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass"
        names = [row[0] for row in connection.execute(query, (parent,))]
        found = {}
        for name in sorted(names):
            row = connection.execute(f"SELECT count(*) FROM {name}".encode()).fetchone()
            assert row is not None
            found[name] = row[0]
        return found


def test_days_are_made_ahead_and_take_their_rows(store: Store, database_url: str) -> None:
    store.ingest("t", 0, None, 1, [window(i, START + i * DAY, layers=("conv1",)) for i in range(3)])
    assert counts(database_url) == {"windows_default": 3}
    for _ in range(2):
        store.maintain(START, retention_days=30, days_ahead=1)
        assert counts(database_url) == {"windows_20260301": 1, "windows_20260302": 1, "windows_default": 1}
        assert counts(database_url, "agent_windows")["agent_windows_20260301"] == 1
    store.ingest("t", 0, 1, 2, [window(9, START, layers=("conv1",)), window(10, START + MINUTE, layers=("conv1",))])
    assert counts(database_url)["windows_20260301"] == 2
    found = store.model_version("digits", "1")
    assert found is not None
    assert store.summaries(found.id, START, START + 9 * DAY)["conv1"].n == 100


def test_old_days_and_keys_go(store: Store, database_url: str) -> None:
    store.maintain(START, retention_days=30, days_ahead=1)
    batch = [window(i, START + i * DAY, layers=("conv1",)) for i in range(3)]
    store.ingest("t", 0, None, 1, [*batch, window(9, START - DAY, layers=("conv1",))])
    store.maintain(START + 32 * DAY, retention_days=30, days_ahead=0)
    # 1 and 2 March are dropped, as is the row of 28 February in the default partition; 3 March is 30 days before.
    assert counts(database_url) == {"windows_20260402": 0, "windows_default": 1}
    with psycopg.connect(psycopg_url(database_url)) as connection:
        connection.execute("UPDATE ingest_keys SET received_at = %s WHERE seq = 1", (START,))
    store.maintain(START + 32 * DAY, retention_days=30, days_ahead=0)
    with psycopg.connect(psycopg_url(database_url)) as connection:
        assert [row[0] for row in connection.execute("SELECT seq FROM ingest_keys ORDER BY 1")] == [0, 2, 9]


def test_only_one_process_maintains(store: Store, database_url: str) -> None:
    with psycopg.connect(psycopg_url(database_url)) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (MAINTENANCE,))
        store.maintain(START, retention_days=30, days_ahead=1)
    assert counts(database_url) == {"windows_default": 0}


def test_ingest_goes_on_meanwhile(store: Store, database_url: str) -> None:
    done = threading.Event()
    failures: list[Exception] = []

    def maintain() -> None:
        other = Store(database_url)
        try:
            for ahead in range(6):
                other.maintain(START, retention_days=30, days_ahead=ahead)
        except Exception as error:
            failures.append(error)
        finally:
            other.close()
            done.set()

    thread = threading.Thread(target=maintain)
    thread.start()
    i = 0
    while not done.is_set() or i < 10:
        store.ingest("t", 0, i or None, i + 1, [window(i, START + (i % 6) * DAY, layers=("conv1",))])
        i += 1
    thread.join()
    assert failures == []
    assert sum(counts(database_url).values()) == min(i, 6)
    assert counts(database_url)["windows_default"] == 0


def test_senseless_settings_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="retention_days 0"):
        store.maintain(START, retention_days=0, days_ahead=1)
