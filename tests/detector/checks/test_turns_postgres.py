"""One check per model version and due time, however many detectors there are, on a real Postgres."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from deploy.local.postgres import psycopg_url
from detector.checks.check import CheckSettings
from detector.checks.every import run_all
from detector.domain.turns import Turn
from detector.store import LostOwnership, Store
from tests.detector.builders import MINUTE, START, window
from tests.detector.samples import check

SETTINGS = CheckSettings(check_interval=60, active_seconds=86_400)
VERSIONS, DUE_TIMES, DETECTORS = 3, 12, 3
DUE = START + 10 * MINUTE
STUCK = """
import sys, time
from detector.checks.every import run_all
from detector.store import Store
from tests.detector.checks.test_turns_postgres import DUE, SETTINGS

class Stuck(Store):
    def spans(self, version_id, start, end):
        print("in the middle", flush=True)
        time.sleep(600)

run_all(Stuck(sys.argv[1]), SETTINGS, DUE, {})
"""


def fill(store: Store, versions: int) -> None:
    messages = [window(i, version=str(i), digest=f"d{i}") for i in range(versions)]
    store.ingest("t", 0, None, len(messages), messages)


def started(url: str) -> Counter[tuple[int, datetime]]:
    """Checks by version and the minute of their start."""
    with psycopg.connect(psycopg_url(url)) as connection:
        rows = connection.execute("SELECT model_version_id, date_trunc('minute', started_at) FROM checks")
        return Counter((row[0], row[1]) for row in rows)


def test_three_detectors_check_each_version_once_per_due_time(database_url: str) -> None:
    stores = [Store(database_url) for _ in range(DETECTORS)]
    fill(stores[0], VERSIONS)
    together = threading.Barrier(DETECTORS)
    done: list[list[int]] = [[] for _ in stores]
    failures: list[BaseException] = []

    def detect(number: int) -> None:
        try:
            for due in range(DUE_TIMES):
                together.wait(60)
                for look in range(3):  # they look more often than checks are due, each at its own moments
                    now = DUE + due * MINUTE + timedelta(seconds=15 * look + 4 * number)
                    done[number] += [one.model_version_id for one in run_all(stores[number], SETTINGS, now, {})]
        except BaseException as error:
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=detect, args=(number,)) for number in range(DETECTORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    counts = started(database_url)
    assert set(counts.values()) == {1}
    assert len(counts) == VERSIONS * DUE_TIMES
    assert sum(map(len, done)) == VERSIONS * DUE_TIMES
    for store in stores:
        store.close()


@pytest.mark.timeout(120)
def test_a_detector_killed_in_the_middle_of_a_check_loses_none_and_doubles_none(database_url: str) -> None:
    stores = [Store(database_url) for _ in range(DETECTORS - 1)]
    fill(stores[0], 1)
    command = [sys.executable, "-c", STUCK, database_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"in the middle\n"
            assert [run_all(store, SETTINGS, DUE, {}) for store in stores] == [[], []]  # it is at it
        finally:
            process.kill()
    made: list[int] = []
    deadline = time.monotonic() + 30
    while not made and time.monotonic() < deadline:  # until Postgres has seen the connection end
        made = [one.model_version_id for store in stores for one in run_all(store, SETTINGS, DUE, {})]
        time.sleep(0.05)
    assert made == [1]
    assert [run_all(store, SETTINGS, DUE + MINUTE / 2, {}) for store in stores] == [[], []]
    assert started(database_url) == Counter({(1, DUE): 1})
    for store in stores:
        store.close()


def test_a_check_whose_turn_was_taken_meanwhile_is_not_stored(database_url: str) -> None:
    store = Store(database_url)
    fill(store, 1)
    for before, after in ((None, DUE), (DUE, DUE + MINUTE)):
        turn = Turn(before, after)
        store.save_check(check(1, at=START), {}, None, turn)
        with pytest.raises(LostOwnership, match="at this due time"):
            store.save_check(check(1, at=START), {}, None, turn)
    assert len(store.checks(1, START, 9)) == 2
    store.close()
