"""The SQLite file of an outbox: its tables, the checksum of each message, and how they are read and written.

Statements are closed as soon as they end, also by an error: one that is alive in a traceback keeps the file locked,
even behind a connection that was closed.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.delivery.boot import is_epoch
from agent.delivery.faults import Damaged, reading

_ROW = 64
"""Bytes counted for a message besides its key and payload."""
_TABLES = (
    "CREATE TABLE IF NOT EXISTS boot (id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL,"
    " payload BLOB NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, checksum BLOB)",
)
READ = "SELECT id, CAST(key AS BLOB), payload, epoch, seq, checksum FROM messages"
"""Columns that `intact` understands."""


@dataclass(frozen=True, slots=True)
class Item:
    """A message that waits for the broker; (epoch, seq) are those it was made with."""

    rowid: int
    key: str
    payload: bytes
    epoch: int
    seq: int

    @property
    def size(self) -> int:
        """Bytes that count against the outbox' room."""
        return size(self.key, self.payload)


def size(key: str, payload: bytes) -> int:
    """Bytes that a message counts for."""
    return len(payload) + len(key.encode()) + _ROW


def checksum(key: bytes, payload: bytes, epoch: int, seq: int) -> bytes:
    """Of a message; kept beside it, for SQLite has none for the pages of its main file."""
    digest = hashlib.blake2b(b"%d:%d:%d:%b" % (epoch, seq, len(key), key), digest_size=8)
    digest.update(payload)
    return digest.digest()


def intact(row: tuple[Any, ...]) -> Item | None:
    """The message in a row of `READ`, None where it is not the one that was appended.

    Raises:
        Damaged: the row has no number, so that it could not even be deleted.
    """
    rowid, key, payload, epoch, seq, check = row
    if not isinstance(rowid, int):
        raise Damaged("a message has no row id")
    if not (isinstance(key, bytes) and isinstance(payload, bytes) and is_epoch(epoch) and isinstance(seq, int)):
        return None
    if check != checksum(key, payload, epoch, seq):
        return None
    try:
        return Item(rowid, key.decode(), payload, epoch, seq)
    except UnicodeDecodeError:
        return None


def connect(path: Path) -> tuple[sqlite3.Connection, int]:
    """Opens or makes the file at `path`, for this process alone; also the greatest boot epoch it knows (0: none).

    Raises:
        sqlite3.Error: see `is_damage` and the others.
    """
    db = plain(path)
    try:
        with reading():
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA journal_size_limit=8388608")
            damage = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise Damaged(damage)
            db.execute("BEGIN IMMEDIATE")
            make_tables(db)
            db.execute("COMMIT")
            return db, known_epoch(db)
    except BaseException:
        db.close()
        raise


def begin(db: sqlite3.Connection, epoch: int, last_id: int) -> None:
    """Keeps the epoch of this life, and gives no row id up to `last_id` again; raises sqlite3.Error."""
    with reading():
        db.execute("BEGIN IMMEDIATE")
        write_epoch(db, epoch)
        continue_ids(db, last_id)
        db.execute("COMMIT")


def write_epoch(db: sqlite3.Connection, epoch: int) -> None:
    """Keeps the epoch of the life that begins; raises sqlite3.Error."""
    db.execute("INSERT OR REPLACE INTO boot VALUES (1, ?)", (epoch,))


def insert(db: sqlite3.Connection, key: str, payload: bytes, epoch: int, seq: int) -> int:
    """Adds a message; returns its row id. Raises sqlite3.Error."""
    values = (key, payload, epoch, seq, checksum(key.encode(), payload, epoch, seq))
    sql = "INSERT INTO messages (key, payload, epoch, seq, checksum) VALUES (?, ?, ?, ?, ?)"
    return db.execute(sql, values).lastrowid or 0


def oldest(
    db: sqlite3.Connection, gone: Collection[int], limit: int, max_bytes: int | None
) -> tuple[list[Item], list[int], bool]:
    """Messages but those `gone`, at most `limit` and of `max_bytes` (but at least one).

    Also the row ids of damaged ones on the way there, and whether these are all there are. Raises sqlite3.Error.
    """
    items: list[Item] = []
    damaged: list[int] = []
    total = 0
    with closing(db.execute(f"{READ} ORDER BY id")) as rows:
        for row in rows:
            if row[0] in gone:
                continue
            item = intact(row)
            if item is None:
                damaged.append(row[0])
                continue
            total += len(item.payload)
            if len(items) == limit or (items and max_bytes is not None and total > max_bytes):
                return items, damaged, False
            items.append(item)
    return items, damaged, True


def oldest_of(db: sqlite3.Connection, key: str, gone: Collection[int]) -> bytes | None:
    """The payload of the first intact message with a key, but those `gone`; raises sqlite3.Error."""
    with closing(db.execute(f"{READ} WHERE key = ? ORDER BY id", (key,))) as rows:
        items = (intact(row) for row in rows if row[0] not in gone)
        return next((item.payload for item in items if item is not None), None)


def waiting(db: sqlite3.Connection, gone: Collection[int]) -> tuple[int, int, int]:
    """Messages and bytes but those `gone`, and the greatest row id ever given; raises sqlite3.Error."""
    count = total = 0
    sql = "SELECT id, coalesce(length(payload) + length(CAST(key AS BLOB)), 0) FROM messages"
    with closing(db.execute(sql)) as rows:
        for rowid, length in rows:
            if rowid not in gone:
                count, total = count + 1, total + length + _ROW
    sql = "SELECT max(id) FROM messages UNION ALL SELECT seq FROM sqlite_sequence WHERE name = 'messages'"
    with closing(db.execute(sql)) as rows:
        return count, total, max((rowid for (rowid,) in rows if isinstance(rowid, int)), default=0)


def continue_ids(db: sqlite3.Connection, last: int) -> None:
    """Gives no row id up to `last` again; raises sqlite3.Error."""
    db.execute("DELETE FROM sqlite_sequence WHERE name = 'messages'")
    db.execute("INSERT INTO sqlite_sequence VALUES ('messages', ?)", (last,))


def delete(db: sqlite3.Connection, rowids: Iterable[int]) -> None:
    """Deletes messages, all or none; raises sqlite3.Error."""
    db.execute("BEGIN IMMEDIATE")
    db.executemany("DELETE FROM messages WHERE id = ?", [(rowid,) for rowid in rowids])
    db.execute("COMMIT")


def write_back(db: sqlite3.Connection) -> None:
    """Ends a transaction that failed, and gives back the room of what was written ahead, as far as that is possible."""
    with contextlib.suppress(sqlite3.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def plain(path: Path) -> sqlite3.Connection:
    """The file as it is, for this process alone, unchecked; raises sqlite3.Error."""
    db = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")  # one process only; and no shared memory beside the file
        db.execute("PRAGMA trusted_schema=OFF")
    except BaseException:
        db.close()
        raise
    return db


def make_tables(db: sqlite3.Connection) -> None:
    """Makes what is missing, within a transaction; raises sqlite3.Error."""
    for sql in _TABLES:
        db.execute(sql)
    with closing(db.execute("PRAGMA table_info(messages)")) as rows:
        columns = [row[1] for row in rows]
    if columns == ["id", "key", "payload", "epoch", "seq"]:  # made before messages had one; no damaged name of it
        db.create_function("message_checksum", 4, checksum, deterministic=True)
        db.execute("ALTER TABLE messages ADD COLUMN checksum BLOB")
        db.execute("UPDATE messages SET checksum = message_checksum(CAST(key AS BLOB), payload, epoch, seq)")
    db.execute(f"{READ} LIMIT 0")  # a table of that name with other columns is no outbox


def known_epoch(db: sqlite3.Connection) -> int:
    """The greatest boot epoch in the file; 0 for none. Raises sqlite3.Error."""
    with closing(db.execute("SELECT epoch FROM boot UNION ALL SELECT max(epoch) FROM messages")) as rows:
        return max((epoch for (epoch,) in rows if is_epoch(epoch)), default=0)
