"""The outbox on real files: nothing appended is lost, nothing is numbered twice."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent import wire
from agent.delivery import salvage
from agent.delivery.boot import MAX_EPOCH, next_epoch
from agent.delivery.outbox import Outbox, OutboxError, Watch
from agent.delivery.sender import Sender
from agent.metrics import AgentMetrics


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
    second = Outbox(path, 1 << 20, watch=Watch(clock=lambda: 1.0))  # a clock that went back
    assert second.boot_epoch > first.boot_epoch
    assert second.depth() == depth
    second.append("m@1", payload)
    assert [(item.epoch, item.seq) for item in second.pending(9)] == [(first.boot_epoch, 1), (second.boot_epoch, 1)]


@pytest.mark.parametrize("lost", ["outbox.sqlite", "outbox.sqlite.boot"])
def test_epoch_grows_though_a_file_was_lost_and_the_clock_went_back(path: Path, lost: str) -> None:
    epochs = []
    for now in (100.0, 99.0, 98.0):
        outbox = Outbox(path, 1 << 20, watch=Watch(clock=lambda now=now: now))  # type: ignore[misc]
        outbox.append("k", payload)
        epochs.append(outbox.boot_epoch)
        outbox.close()
        path.with_name(lost).unlink()
    assert epochs == sorted(set(epochs))


def test_epochs_differ_though_all_was_lost_and_the_clock_stands(path: Path) -> None:
    epochs = set()
    for _ in range(3):
        outbox = Outbox(path, 1 << 20, watch=Watch(clock=lambda: 100.0))
        epochs.add(outbox.boot_epoch)
        outbox.close()
        for file in path.parent.iterdir():
            file.unlink()
    assert len(epochs) == 3


def test_epoch_grows_over_one_of_the_former_kind() -> None:
    milliseconds_only = 1_900_000_000_000
    assert next_epoch(milliseconds_only, 0) > milliseconds_only


@pytest.mark.parametrize("now_ms", [-1, 0, 1 << 41, 1 << 60])
def test_epoch_fits_the_wire_whatever_the_clock_says(now_ms: int) -> None:
    assert 0 < next_epoch(0, now_ms) <= MAX_EPOCH < 1 << 62


@pytest.mark.parametrize("content", [b"", b"\0" * 30, b"99999999999999999999 00000000\n", b"\xff" * 9])
def test_damaged_boot_file_is_no_trouble(path: Path, content: bytes) -> None:
    first = Outbox(path, 1 << 20)
    first.close()
    path.with_name("outbox.sqlite.boot").write_bytes(content)
    second = Outbox(path, 1 << 20, watch=Watch(clock=lambda: 1.0))
    assert first.boot_epoch < second.boot_epoch <= MAX_EPOCH


def test_absurd_epoch_in_a_file_that_seems_sound_is_not_believed(path: Path) -> None:
    Outbox(path, 1 << 20).close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE boot SET epoch = 9223372036854775807")
    assert Outbox(path, 1 << 20).boot_epoch <= MAX_EPOCH


def test_full(path: Path) -> None:
    dropped: list[int] = []
    outbox = Outbox(path, 1000, watch=Watch(on_drop=lambda: dropped.append(1)))
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
    db = outbox._storage.ready()
    assert db is not None
    db.execute("PRAGMA max_page_count=40")
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


def damaged(path: Path, first: int, last: int) -> None:
    """Noise over the pages [first, last) of the file."""
    content = bytearray(path.read_bytes())
    content[first * 4096 : last * 4096] = os.urandom((last - first) * 4096)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("first", "last", "least"),
    [(0, 2, 0), (2, 4, 0), (30, 31, 190), (30, 35, 150)],
    ids=["no database", "root page", "leaf page", "several leaf pages"],
)
def test_corrupt_file_is_set_aside_and_what_is_good_in_it_goes_on(
    path: Path, first: int, last: int, least: int
) -> None:
    metrics = AgentMetrics()
    outbox = Outbox(path, 1 << 20)
    made: dict[int, bytes] = {}
    for _ in range(200):
        outbox.append("k", lambda seq: made.setdefault(seq, os.urandom(1000)))
    outbox.close()
    damaged(path, first, last)
    again = Outbox(path, 1 << 20, watch=Watch(on_damage=metrics.outbox_damaged_total.inc))
    items = again.pending(1000)
    assert least <= len(items) < 200
    assert [item.seq for item in items] == sorted(item.seq for item in items)
    assert all(item.payload == made[item.seq] for item in items)
    assert again.depth() == (len(items), sum(item.size for item in items))
    assert again.boot_epoch > outbox.boot_epoch
    assert metrics.registry.get_sample_value("reluscope_agent_outbox_damaged_total") == 1
    assert len(list(path.parent.glob("outbox.sqlite.damaged-*"))) == 1
    assert again.append("k", payload)
    again.acknowledge([item.rowid for item in again.pending(1000)])
    again.close()
    assert Outbox(path, 1 << 20).depth() == (0, 0)


@pytest.mark.parametrize("old", [b"payload BLOB", b"CREATE TABLE boot", b"checksum BLOB"])
def test_damaged_schema_does_not_lock_the_file_against_its_own_process(path: Path, old: bytes) -> None:
    """The error holds the statement; a statement that is alive holds the lock, though its connection was closed."""
    outbox = Outbox(path, 1 << 20)
    outbox.append("k", payload)
    outbox.close()
    path.write_bytes(path.read_bytes().replace(old, b"\xd8" + old[1:].replace(b" ", b"\xff")))
    begin = time.monotonic()
    again = Outbox(path, 1 << 20)
    assert time.monotonic() - begin < 1.5, "it waited for a lock"
    assert again.append("k", payload)
    assert len(list(path.parent.glob("outbox.sqlite.damaged-*"))) == 1


def test_a_damaged_name_does_not_make_it_a_file_without_checksums(path: Path) -> None:
    outbox = Outbox(path, 1 << 20)
    outbox.append("k", lambda seq: b"payload 1")
    outbox.close()
    path.write_bytes(path.read_bytes().replace(b"checksum BLOB", b"checksul BLOB").replace(b"payload 1", b"payload 9"))
    assert Outbox(path, 1 << 20).pending(9) == []


def test_few_damaged_files_are_kept(path: Path) -> None:
    for second in range(5):
        outbox = Outbox(path, 20_000, keep_damaged=3, watch=Watch(clock=lambda second=second: second))  # type: ignore[misc]
        outbox.append("k", lambda seq: bytes(9_000))
        outbox.close()
        damaged(path, 0, 1)
    kept = sorted(path.parent.glob("outbox.sqlite.damaged-*"))
    assert len(kept) == 1, "each has 20 kB and more"
    assert "T000004" in kept[0].name


def test_a_message_damaged_on_the_disk_is_not_sent(path: Path) -> None:
    outbox = Outbox(path, 1 << 20)
    for _ in range(3):
        outbox.append("k", lambda seq: b"payload %d" % seq)
    outbox.close()
    path.write_bytes(path.read_bytes().replace(b"payload 2", b"payload 9"))
    again = Outbox(path, 1 << 20)
    assert [item.payload for item in again.pending(9)] == [b"payload 1", b"payload 3"]
    assert (again.dropped, again.depth()[0]) == (1, 2)


def test_file_made_before_messages_had_checksums(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE boot (id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL)")
        db.execute("INSERT INTO boot VALUES (1, 1700000000000)")
        db.execute(
            "CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL,"
            " payload BLOB NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL)"
        )
        db.execute("INSERT INTO messages (key, payload, epoch, seq) VALUES ('m@1', x'00ff', 1700000000000, 7)")
    outbox = Outbox(path, 1 << 20)
    assert [(item.payload, item.epoch, item.seq) for item in outbox.pending(9)] == [(b"\0\xff", 1700000000000, 7)]
    assert outbox.boot_epoch > 1700000000000


@pytest.mark.parametrize("before", [0, 1, 2])
def test_killed_while_setting_aside(path: Path, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first rename, between both, and before the folder is synced."""
    outbox = Outbox(path, 1 << 20)
    for _ in range(200):
        outbox.append("k", lambda seq: os.urandom(1000))
    outbox.close()
    damaged(path, 30, 31)

    class Killed(BaseException):
        pass

    left = [before]
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        rename(source, target)

    def sync(folder: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("agent.delivery.salvage.os.replace", replace)
        patch.setattr(salvage, "_sync", sync)
        Outbox(path, 1 << 20)
    again = Outbox(path, 1 << 20)
    assert again.depth()[0] > 190
    assert again.boot_epoch > outbox.boot_epoch
    assert not path.with_name("outbox.sqlite.new").exists()


def test_sender_goes_on_while_the_disk_fails(path: Path) -> None:
    metrics = AgentMetrics()
    passed = [0.0]
    watch = Watch(metrics.outbox_dropped_total.inc, metrics.outbox_errors_total.inc, monotonic=lambda: passed[0])
    outbox = Outbox(path, 1 << 20, watch=watch)
    sender = Sender(outbox, "pod-1", 1 << 20)
    body = wire.Comparison(1000, 2000, "cpu_provider", "CPUExecutionProvider", "", "CUDAExecutionProvider", 100)
    sender.comparison("m", "1", "d", body)
    outbox._storage._db.close()  # type: ignore[union-attr]  # as after an error that SQLite cannot get over
    sender.comparison("m", "1", "d", body)
    passed[0] += 60
    sender.comparison("m", "1", "d", body)
    assert [(e.boot_epoch, e.seq) for e in (wire.decode(item.payload) for item in outbox.pending(9))] == [
        (outbox.boot_epoch, 1),
        (outbox.boot_epoch, 3),
    ]
    assert metrics.registry.get_sample_value("reluscope_agent_outbox_errors_total") == 1
    assert metrics.registry.get_sample_value("reluscope_agent_outbox_dropped_total") == 1


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
