"""The outbox on real files: nothing appended is lost, nothing is numbered twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.delivery.outbox import Outbox, OutboxError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite"


def payload(seq: int) -> bytes:
    return b"payload-%d" % seq


def test_append_pending_acknowledge(path: Path) -> None:
    outbox = Outbox(path, 1 << 20)
    assert all(outbox.append("m@1", payload) for _ in range(3))
    items = outbox.pending(10)
    assert [(item.key, item.payload, item.seq) for item in items] == [("m@1", payload(i), i) for i in (1, 2, 3)]
    assert {item.epoch for item in items} == {outbox.boot_epoch}
    outbox.acknowledge([items[0].rowid, items[2].rowid, 999])
    assert [item.seq for item in outbox.pending(10)] == [2]
    assert outbox.depth()[0] == 1
    outbox.acknowledge([items[1].rowid])
    assert outbox.depth() == (0, 0)


def test_pending_is_bounded_in_messages_and_bytes(path: Path) -> None:
    outbox = Outbox(path, 1 << 20)
    for _ in range(5):
        outbox.append("k", lambda seq: bytes(100))
    assert len(outbox.pending(2)) == 2
    assert len(outbox.pending(10, max_bytes=250)) == 2
    assert len(outbox.pending(10, max_bytes=1)) == 1


def test_reopened_it_has_all_and_a_greater_epoch(path: Path) -> None:
    first = Outbox(path, 1 << 20)
    first.append("m@1", payload)
    depth = first.depth()
    first.close()
    second = Outbox(path, 1 << 20, clock=lambda: 1.0)  # a clock that went back
    assert second.boot_epoch == first.boot_epoch + 1
    assert second.depth() == depth
    second.append("m@1", payload)
    assert [(item.epoch, item.seq) for item in second.pending(9)] == [(first.boot_epoch, 1), (second.boot_epoch, 1)]


def test_epoch_grows_even_when_the_file_was_lost(path: Path) -> None:
    first = Outbox(path, 1 << 20, clock=lambda: 100.0)
    first.close()
    path.unlink()
    assert Outbox(path, 1 << 20, clock=lambda: 101.0).boot_epoch > first.boot_epoch


def test_full(path: Path) -> None:
    dropped: list[int] = []
    outbox = Outbox(path, 1000, on_drop=lambda: dropped.append(1))
    stored = [outbox.append("k", lambda seq: bytes(200)) for _ in range(5)]
    assert stored == [True, True, True, False, False]
    assert (outbox.dropped, len(dropped)) == (2, 2)
    outbox.acknowledge([outbox.pending(1)[0].rowid])
    assert outbox.append("k", lambda seq: bytes(200))
    assert [item.seq for item in outbox.pending(9)] == [2, 3, 6]


def test_message_that_cannot_be_made_is_an_error_of_its_maker(path: Path) -> None:
    outbox = Outbox(path, 1000)
    with pytest.raises(ZeroDivisionError):
        outbox.append("k", lambda seq: bytes(1 // 0))
    assert outbox.append("k", payload)
    assert [item.seq for item in outbox.pending(9)] == [2]


def test_full_disk_is_a_drop(path: Path) -> None:
    outbox = Outbox(path, 1 << 30)
    outbox._db.execute("PRAGMA max_page_count=40")
    stored = [outbox.append("k", lambda seq: bytes(20_000)) for _ in range(20)]
    assert stored[0]
    assert not stored[-1]
    assert outbox.dropped == stored.count(False)
    assert len(outbox.pending(99)) == stored.count(True)


def test_one_process_only(path: Path) -> None:
    outbox = Outbox(path, 1000)
    outbox.append("k", payload)
    with pytest.raises(OutboxError, match=r"outbox\.sqlite: another process"):
        Outbox(path, 1000)


@pytest.mark.parametrize("damage", ["no database", "torn page"])
def test_corrupt_file(path: Path, damage: str) -> None:
    outbox = Outbox(path, 1 << 20)
    for _ in range(200):
        outbox.append("k", lambda seq: os.urandom(1000))
    outbox.close()
    content = bytearray(path.read_bytes())
    content[0 if damage == "no database" else 4096 : 12288] = os.urandom(8192)
    path.write_bytes(content)
    with pytest.raises(OutboxError, match=r"outbox\.sqlite: not a usable outbox"):
        Outbox(path, 1 << 20)


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="nowhere"):
        Outbox(tmp_path / "nowhere" / "outbox.sqlite", 1000)


def test_many_threads(path: Path) -> None:
    outbox = Outbox(path, 1 << 24)
    seen: list[int] = []
    writers = [threading.Thread(target=lambda: [outbox.append("k", payload) for _ in range(50)]) for _ in range(4)]
    for writer in writers:
        writer.start()
    while len(seen) < 200:
        items = outbox.pending(30)
        outbox.acknowledge([item.rowid for item in items])
        seen += [item.seq for item in items]
    assert sorted(seen) == list(range(1, 201))
    assert outbox.depth() == (0, 0)


WRITER = """
import sys
from agent.delivery.outbox import Outbox
outbox = Outbox(sys.argv[1], 1 << 30)
while True:
    done = []
    outbox.append("k", lambda seq: done.append(seq) or b"%d" % seq)
    print(outbox.boot_epoch, done[0], flush=True)
"""


def test_killed_writer_loses_nothing_it_had_appended(path: Path) -> None:
    told: set[tuple[int, int]] = set()
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(20)]
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.read().splitlines()
        writer.wait()
        for line in lines:
            if len(parts := line.split()) == 2:
                told.add((int(parts[0]), int(parts[1])))
    outbox = Outbox(path, 1 << 30)
    kept = [(item.epoch, item.seq) for item in outbox.pending(1 << 20)]
    assert len(set(kept)) == len(kept)
    assert told <= set(kept)
    assert len({epoch for epoch, _ in kept}) == 3
    assert outbox.boot_epoch > max(epoch for epoch, _ in kept)


def test_the_file_is_sqlite_with_wal(path: Path) -> None:
    Outbox(path, 1000).close()
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)
