"""The outbox's file through the faults of its disk: given up for a while, tried again, replaced where it is damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from agent.delivery import faults, outbox_file, salvage
from agent.delivery.boot import Boot, OutboxError, next_epoch
from agent.delivery.outbox_file import Item
from agent.delivery.watch import Watch
from agent.repeats import Repeats

_log = structlog.get_logger()
_FIRST_DELAY = 1.0
_LAST_DELAY = 30.0
_PATIENCE = 5
"""A file that cannot be read at so many attempts in a row is as good as damaged."""


class Storage:
    """Messages in the file. Not thread-safe. After the constructor no method raises for what the disk does."""

    def __init__(self, path: Path, max_bytes: int, keep_damaged: int, watch: Watch) -> None:
        """Raises OutboxError where another process has the file, or it is not open to this one."""
        self._path, self._max_bytes, self._keep_damaged, self._watch = path, max_bytes, keep_damaged, watch
        self.count = 0
        """Messages that wait."""
        self.bytes = 0
        self.epoch = 0
        """Of this life; changes, upwards, only where a file turns up that knows a greater one."""
        self.lost = 0
        """Messages that were appended, and are damaged."""
        self._repeats = Repeats(clock=watch.monotonic)
        self._last_id = 0
        self._handed: dict[int, int] = {}  # row id to size of what `read` gave
        self._gone: set[int] = set()  # acknowledged, but still in the file
        self._db: sqlite3.Connection | None = None
        self._closed = self._doubted = self._noted = False
        self._attempts, self._retry_at = 0, watch.monotonic()
        self._boot = Boot(path)
        try:
            self._begin_life(self._boot.last())
            self._open(first=True)
        except BaseException:
            self.close()
            raise

    def ready(self) -> sqlite3.Connection | None:
        """The open file; None where it cannot be used now."""
        if self._db is None and not self._closed and self._watch.monotonic() >= self._retry_at:
            self._open()
        try:
            self._note()
        except sqlite3.Error as error:
            self._failed("write", error)
        return self._db

    def add(self, key: str, payload: bytes, epoch: int, seq: int) -> bool:
        """Appends a message; it is on the disk when this returns True."""
        for attempt in range(3):  # again where a damaged file has been replaced, or a full one written back
            db = self.ready()
            if db is None:
                return False
            try:
                with faults.reading():
                    self._last_id = outbox_file.insert(db, key, payload, epoch, seq)
            except sqlite3.Error as error:
                self._failed("write", error)
                full = faults.is_full(error)
                if not (full or faults.is_damage(error)):
                    return False
                if full and attempt and self.count == 0:
                    self._start_anew()
            else:
                self.count += 1
                self.bytes += outbox_file.size(key, payload)
                return True
        return False

    def read(self, limit: int, max_bytes: int | None) -> list[Item] | None:
        """The oldest messages, as `Outbox.pending`; None where the file cannot be read. Damaged ones are `lost`."""
        for _ in range(2):  # again where a damaged file has been replaced
            if (db := self.ready()) is None:
                return None
            try:
                with faults.reading():
                    items, damaged, whole = outbox_file.oldest(db, self._gone, limit, max_bytes)
                break
            except sqlite3.Error as error:
                self._failed("read", error)
        else:
            return None
        if whole:  # so the counts are known, whatever damaged ones were counted as
            self.count, self.bytes = len(items), sum(item.size for item in items)
        self._handed.update((item.rowid, item.size) for item in items)
        if damaged:
            _log.error("outbox.messages_damaged", path=str(self._path), messages=len(damaged))
            self.lost += len(damaged)
            self._gone.update(damaged)
        self._delete_gone()
        return items

    def oldest(self, key: str) -> bytes | None:
        """As `Outbox.oldest`."""
        db = self.ready()
        try:
            with faults.reading():
                return None if db is None else outbox_file.oldest_of(db, key, self._gone)
        except sqlite3.Error as error:
            self._failed("read", error)
            return None

    def forget(self, rowids: Iterable[int]) -> None:
        """Deletes messages that `read` gave, now or as soon as the disk lets it."""
        for rowid in rowids:
            size = self._handed.pop(rowid, None)
            if size is not None:
                self.count -= 1
                self.bytes -= size
                self._gone.add(rowid)
        self._delete_gone()

    def close(self) -> None:
        """Closes the file for good."""
        self._closed = True
        self._disconnect()
        self._boot.close()

    def _delete_gone(self) -> None:
        for last in (False, True):
            db = self.ready() if self._gone else None
            if db is None:
                return
            try:
                with faults.reading():
                    outbox_file.delete(db, self._gone)
                self._gone.clear()
            except sqlite3.Error as error:
                self._failed("delete", error)
                if last and faults.is_full(error) and self.count == 0:
                    self._start_anew()

    def _start_anew(self) -> None:
        """A full disk may let nothing be deleted; where all is acknowledged, the whole file can go."""
        self._disconnect()
        try:
            salvage.remove(self._path)
            self._gone.clear()
        except OSError as error:
            self._unusable(error)
        self.ready()

    def _open(self, *, first: bool = False) -> None:
        """Opens the file, a new one in place of a damaged one; where that fails, it is tried again later.

        Raises:
            OutboxError: only where `first`: another process has the file, or it is not open to this one.
        """
        try:
            salvage.finish(self._path)
            if self._doubted:
                self._replace("found damaged while in use")
            try:
                self._connect(first)
            except sqlite3.Error as error:
                unreadable = self._attempts >= _PATIENCE and faults.is_io(error)
                if not (unreadable or faults.is_damage(error) or faults.is_sealed(error, self._path)):
                    raise
                self._replace(faults.words(error))
                self._connect(first)
        except (sqlite3.Error, OSError) as error:
            if first and faults.is_busy(error):
                raise OutboxError(f"{self._path}: another process uses this outbox") from error
            if first and faults.is_forbidden(error):
                raise OutboxError(f"{self._path}: not a usable outbox ({faults.words(error)})") from error
            self._unusable(error)
        else:
            self._attempts = 0

    def _connect(self, first: bool) -> None:
        db, known = outbox_file.connect(self._path)
        try:
            if known > self.epoch or (first and known == self.epoch):
                self._begin_life(known)
            with faults.reading():
                self.count, self.bytes, last_id = outbox_file.waiting(db, self._gone)
        except BaseException:
            db.close()
            raise
        self._db, self._noted, self._last_id = db, False, max(self._last_id, last_id)
        try:
            self._note()
        except sqlite3.Error as error:
            if not faults.is_full(error):
                self._disconnect()
                raise
            self._watch.on_error()  # later; what waits can be sent all the same
            outbox_file.write_back(db)

    def _note(self) -> None:
        """Writes this life's epoch into the file; raises sqlite3.Error."""
        if self._db is not None and not self._noted:
            outbox_file.begin(self._db, self.epoch, self._last_id)
            self._noted = True

    def _begin_life(self, known: int) -> None:
        now_ms = int(self._watch.clock() * 1000)
        self.epoch = next_epoch(max(known, self.epoch), now_ms, self._watch.random_bits)
        self._boot.write(self.epoch)

    def _replace(self, reason: str) -> None:
        """Sets the damaged file aside; raises sqlite3.Error or OSError where that fails."""
        now = datetime.fromtimestamp(self._watch.clock(), UTC)
        aside, salvaged = salvage.replace(self._path, self._last_id + 1, self._gone, self._max_bytes, now)
        lost = max(0, self.count - salvaged)
        self.lost += lost
        self._doubted = False
        self._gone.clear()
        self._handed.clear()  # what was on its way comes again, under a new row id
        self._watch.on_damage()
        _log.error("outbox.damaged", path=str(self._path), kept_as=aside.name, salvaged=salvaged, lost=lost, why=reason)
        salvage.prune(self._path, self._keep_damaged, self._max_bytes)

    def _failed(self, what: str, error: sqlite3.Error) -> None:
        """An operation failed: count it, and do what helps the next one."""
        self._watch.on_error()
        self._repeats.warning("outbox.failed", (what,), path=str(self._path), operation=what, error=faults.words(error))
        if self._db is not None and (faults.is_full(error) or faults.is_busy(error)):
            outbox_file.write_back(self._db)  # nothing is wrong with the file; this may give it room
            return
        self._disconnect()
        self._doubted = self._doubted or faults.is_damage(error)
        self.ready()

    def _unusable(self, error: Exception) -> None:
        self._disconnect()
        self._watch.on_error()
        self._retry_at = self._watch.monotonic() + min(_FIRST_DELAY * 2**self._attempts, _LAST_DELAY)
        self._attempts = min(self._attempts + 1, 2 * _PATIENCE)
        self._repeats.warning("outbox.unusable", (), path=str(self._path), error=faults.words(error))

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()
