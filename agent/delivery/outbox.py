"""Messages on disk until the broker has acknowledged them: one SQLite file, owned by one process.

Every append is on the disk before it returns (WAL, synchronous=FULL), so a killed agent or a lost node costs nothing
that was appended. What does not fit is refused and counted; its sequence number stays unused: the gap shows the loss.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

_log = structlog.get_logger()
_ROW = 64
"""Bytes counted for a row besides its key and payload."""


class OutboxError(RuntimeError):
    """The file cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Item:
    """A message that waits for the broker; (epoch, seq) are those it was made with."""

    rowid: int
    key: str
    payload: bytes
    epoch: int
    seq: int


class Outbox:
    """A durable queue of at most `max_bytes`. All methods may be called from any thread."""

    def __init__(
        self,
        path: Path | str,
        max_bytes: int,
        *,
        on_drop: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open or make the file at `path`, whose folder must exist.

        Args:
            path: the file; SQLite puts a `-wal` file beside it.
            max_bytes: room for messages.
            on_drop: called for each message that was refused.
            clock: Unix seconds.

        Raises:
            OutboxError: another process has it, or it is no outbox, or it is damaged.
        """
        self.path = Path(path)
        self.dropped = 0
        self._max_bytes = max_bytes
        self._on_drop = on_drop
        self._lock = threading.Lock()
        self._seq = 0
        try:
            self._db = sqlite3.connect(self.path, timeout=2.0, isolation_level=None, check_same_thread=False)
            try:
                self.boot_epoch = self._open(int(clock() * 1000))
                self._count, self._bytes = self._db.execute(
                    "SELECT count(*), coalesce(sum(length(payload) + length(CAST(key AS BLOB)) + ?), 0) FROM messages",
                    (_ROW,),
                ).fetchone()
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _open(self, now_ms: int) -> int:
        """Prepare the file; returns the new boot epoch.

        The epoch is the time in milliseconds, or one more than the last, whichever is greater: so it grows even after
        the file has been lost, and messages of a new life are never taken for those of a former one.
        """
        execute = self._db.execute
        execute("PRAGMA locking_mode=EXCLUSIVE")  # one process only
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=FULL")
        execute("PRAGMA journal_size_limit=8388608")
        damage = execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        execute("BEGIN IMMEDIATE")
        execute("CREATE TABLE IF NOT EXISTS boot (id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL)")
        execute(
            "CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL,"
            " payload BLOB NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL)"
        )
        epoch: int = execute(
            "INSERT INTO boot VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET epoch = max(excluded.epoch, epoch + 1)"
            " RETURNING epoch",
            (now_ms,),
        ).fetchone()[0]
        execute("COMMIT")
        return epoch

    def append(self, key: str, make: Callable[[int], bytes]) -> bool:
        """Store the message that `make(seq)` returns; on the disk when this returns True.

        False where there is no room, in the budget or on the disk: the message is lost, and counted.
        """
        with self._lock:
            self._seq += 1
            payload = make(self._seq)
            size = len(payload) + len(key.encode()) + _ROW
            stored = self._bytes + size <= self._max_bytes and self._insert(key, payload)
            if stored:
                self._count += 1
                self._bytes += size
            else:
                self.dropped += 1
        if not stored:
            _log.warning("outbox.message_dropped", path=str(self.path), key=key, waiting_bytes=self._bytes)
            self._on_drop()
        return stored

    def _insert(self, key: str, payload: bytes) -> bool:
        try:
            self._db.execute(
                "INSERT INTO messages (key, payload, epoch, seq) VALUES (?, ?, ?, ?)",
                (key, payload, self.boot_epoch, self._seq),
            )
        except sqlite3.Error as error:  # a full disk, mostly: losing a window is better than ending the agent
            _log.error("outbox.write_failed", path=str(self.path), error=str(error))
            return False
        return True

    def pending(self, limit: int, max_bytes: int | None = None) -> list[Item]:
        """The oldest messages, at most `limit`, and no more than fit into `max_bytes` (but at least one)."""
        items: list[Item] = []
        total = 0
        with self._lock:
            try:
                rows = self._db.execute(
                    "SELECT id, key, payload, epoch, seq FROM messages ORDER BY id LIMIT ?", (limit,)
                )
                for row in rows:
                    item = Item(*row)
                    total += len(item.payload)
                    if items and max_bytes is not None and total > max_bytes:
                        break
                    items.append(item)
                rows.close()
            except sqlite3.Error as error:
                raise self._error(error) from error
        return items

    def oldest(self, key: str) -> bytes | None:
        """The payload of the oldest message with a key; None where none waits."""
        with self._lock:
            try:
                query = "SELECT payload FROM messages WHERE key = ? ORDER BY id LIMIT 1"
                row = self._db.execute(query, (key,)).fetchone()
            except sqlite3.Error as error:
                raise self._error(error) from error
        return None if row is None else bytes(row[0])

    def acknowledge(self, rowids: Iterable[int]) -> None:
        """Forget messages that the broker has; unknown row ids are passed over.

        Raises:
            OutboxError: nothing was forgotten; the messages will be sent again.
        """
        with self._lock:
            gone = 0
            freed = 0
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for rowid in rowids:
                    row = self._db.execute(
                        "DELETE FROM messages WHERE id = ? RETURNING length(payload) + length(CAST(key AS BLOB))",
                        (rowid,),
                    ).fetchone()
                    if row is not None:
                        gone += 1
                        freed += row[0] + _ROW
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._error(error) from error
            self._count -= gone
            self._bytes -= freed

    def depth(self) -> tuple[int, int]:
        """Messages and bytes waiting; touches no disk and takes no lock."""
        return self._count, self._bytes

    def close(self) -> None:
        """Close the file; what is in it stays."""
        with self._lock:
            self._db.close()

    def _error(self, error: sqlite3.Error) -> OutboxError:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return OutboxError(f"{self.path}: another process uses this outbox")
        return OutboxError(f"{self.path}: not a usable outbox ({error}); move the file away to start an empty one")
