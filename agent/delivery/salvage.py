"""A damaged outbox is set aside, and what is still good in it goes into a new one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

from agent.delivery import faults, outbox_file
from agent.delivery.outbox_file import READ, Item

_LEAST_ROW = 16
"""No message takes fewer bytes of a file."""
_LAST_ID = 1 << 62


def finish(path: Path) -> None:
    """Brings what a crash in the middle of `replace` left to its end; raises OSError."""
    fresh = _fresh(path)
    if fresh.exists() and not path.exists():  # the new one was whole before the old one was renamed
        os.replace(fresh, path)
    remove(fresh)


def replace(path: Path, first_id: int, gone: Collection[int], max_bytes: int, now: datetime) -> tuple[Path, int]:
    """Sets a damaged file aside, under a name with the time, and puts one in its place with what is still good in it.

    The new file is whole before the old one is renamed, so a crash in between costs nothing. Where the disk has no room
    for what was salvaged, the new file is empty.

    Args:
        path: the file; closed.
        first_id: for the salvaged messages: ids that were never given, so that late acknowledgements hit no other.
        gone: row ids that are acknowledged but could not be deleted.
        max_bytes: most that is salvaged.
        now: for the name.

    Returns:
        The damaged file's new path, and how many messages were salvaged.

    Raises:
        sqlite3.Error, OSError: there is no new file, and the old one is where it was.
    """
    fresh = _fresh(path)
    try:
        salvaged = _salvage(path, fresh, first_id, gone, max_bytes)
    except sqlite3.Error as error:
        if not faults.is_full(error):
            raise
        salvaged = _salvage(path, fresh, first_id, gone, 0)
    aside = _free_name(path, now)
    os.replace(path, aside)
    wal = beside(path, "-wal")
    if wal.exists():
        os.replace(wal, beside(aside, "-wal"))
    os.replace(fresh, path)
    _sync(path.parent)
    return aside, salvaged


def prune(path: Path, most: int, max_bytes: int) -> None:
    """Deletes files that were set aside, oldest first, down to `most` files of `max_bytes` bytes together.

    The newest stays whatever its size, unless `most` is 0. Raises OSError.
    """
    files = sorted(p for p in path.parent.glob(f"{path.name}.damaged-*") if not p.name.endswith(("-wal", "-journal")))
    total = 0
    for rank, file in enumerate(reversed(files)):
        total += sum(part.stat().st_size for part in (file, beside(file, "-wal")) if part.exists())
        if rank >= most or (rank and total > max_bytes):
            remove(file)


def remove(path: Path) -> None:
    """Deletes a file, closed, with all that SQLite lays beside it; raises OSError."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        beside(path, suffix).unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    """The path of a file that belongs to `path`."""
    return path.with_name(path.name + suffix)


def _salvage(path: Path, fresh: Path, first_id: int, gone: Collection[int], max_bytes: int) -> int:
    """Makes the new file; returns how many messages are in it. Raises sqlite3.Error where it cannot be written."""
    remove(fresh)
    with contextlib.closing(outbox_file.plain(fresh)) as new:
        new.execute("PRAGMA journal_mode=MEMORY")  # a file that is not whole is never used
        new.execute("PRAGMA synchronous=FULL")
        new.execute("BEGIN IMMEDIATE")
        outbox_file.make_tables(new)
        outbox_file.continue_ids(new, first_id - 1)
        salvaged, epoch = 0, 0
        with _opened(path) as old:
            if old is not None:
                found, epoch = _survey(old, path.stat().st_size // _LEAST_ROW)
                wanted = [rowid for rowid in found if rowid not in gone]
                salvaged = _copy(old, new, wanted, max_bytes)
        if epoch:
            outbox_file.write_epoch(new, epoch)
        new.execute("COMMIT")
    return salvaged


def _opened(path: Path) -> contextlib.AbstractContextManager[sqlite3.Connection | None]:
    try:
        return contextlib.closing(outbox_file.plain(path))
    except (sqlite3.Error, UnicodeDecodeError):  # nothing of it can be read
        return contextlib.nullcontext()


def _survey(db: sqlite3.Connection, most: int) -> tuple[list[int], int]:
    """Row ids of the intact messages in the order they were made, and the greatest epoch that is known.

    Where reading fails it goes on behind, with growing steps. It looks at `most` rows: a damaged tree may be looped.
    """
    epoch = 0
    with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
        epoch = outbox_file.known_epoch(db)
    found: dict[tuple[int, int], int] = {}
    after, step = 0, 1
    while most > 0 and after < _LAST_ID:
        try:
            with contextlib.closing(db.execute(f"{READ} WHERE id > ? ORDER BY id LIMIT ?", (after, most))) as rows:
                for row in rows:
                    item = outbox_file.intact(row)
                    if item is not None:
                        found.setdefault((item.epoch, item.seq), item.rowid)
                        epoch = max(epoch, item.epoch)
                    after, step, most = max(after, row[0]), 1, most - 1
            break
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if faults.is_busy(error):  # someone else has it: the whole has to be tried again
                raise
            after, step = after + step, step * 2
    return [found[name] for name in sorted(found)], epoch


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, rowids: Sequence[int], max_bytes: int) -> int:
    """Copies messages one by one; those that cannot be read any more are left out. Returns how many were copied."""
    copied = 0
    for rowid in rowids:
        item = _read(old, rowid)
        if item is not None and item.size <= max_bytes:
            outbox_file.insert(new, item.key, item.payload, item.epoch, item.seq)
            max_bytes -= item.size
            copied += 1
    return copied


def _read(db: sqlite3.Connection, rowid: int) -> Item | None:
    try:
        row = db.execute(f"{READ} WHERE id = ?", (rowid,)).fetchone()
    except (sqlite3.Error, UnicodeDecodeError):
        return None
    return None if row is None else outbox_file.intact(row)


def _fresh(path: Path) -> Path:
    return beside(path, ".new")


def _free_name(path: Path, now: datetime) -> Path:
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    names = (beside(path, f".damaged-{stamp}{suffix}") for suffix in ("", *(f"-{number}" for number in range(2, 100))))
    return next((name for name in names if not name.exists()), beside(path, f".damaged-{stamp}"))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
