"""Messages on disk until the broker has acknowledged them: one SQLite file, owned by one process.

Every append is on the disk before it returns (WAL, synchronous=FULL), so a killed agent or a lost node costs nothing
that was appended. What does not fit is refused and counted; its sequence number stays unused: the gap shows the loss.

Faults of the disk are counted and lived with. While the file cannot be used, appends are refused, and it is tried
again, later each time. A damaged file is set aside, and the messages in it that are still good go into a new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from agent.delivery import outbox_file
from agent.delivery.boot import OutboxError
from agent.delivery.outbox_file import Item
from agent.delivery.storage import Storage
from agent.delivery.watch import UNWATCHED, Watch

__all__ = ["Item", "Outbox", "OutboxError", "Watch"]

_log = structlog.get_logger()


class Outbox:
    """A durable queue of at most `max_bytes`. All methods may be called from any thread."""

    def __init__(self, path: Path | str, max_bytes: int, *, keep_damaged: int = 2, watch: Watch = UNWATCHED) -> None:
        """Open or make the file at `path`, whose folder must exist.

        Args:
            path: the file; SQLite puts a `-wal` file beside it, and a `.boot` file has the lock and the boot epoch.
            max_bytes: room for messages.
            keep_damaged: most damaged files that are kept beside it, of `max_bytes` together, but the newest anyway.
            watch: what is called when something goes wrong, and the clock.

        Raises:
            OutboxError: another process has it, or the folder or the file is not open to this one.
        """
        self.path = Path(path)
        self.dropped = 0
        """Messages refused or lost."""
        self._max_bytes = max_bytes
        self._on_drop = watch.on_drop
        self._lock = threading.Lock()
        self._seq = 0
        self._storage = Storage(self.path, max_bytes, keep_damaged, watch)

    @property
    def boot_epoch(self) -> int:
        """Of this life of the outbox: greater than all before. Constant while an append's `make` runs."""
        return self._storage.epoch

    def append(self, key: str, make: Callable[[int], bytes]) -> bool:
        """Store the message that `make(seq)` returns; on the disk when this returns True.

        False where there is no room, in the budget or on the disk, or the file cannot be used: the message is lost, and
        counted.
        """
        with self._lock:
            self._storage.ready()  # before the epoch is asked for
            epoch = self._storage.epoch
            self._seq += 1
            payload = make(self._seq)
            fits = self._storage.bytes + outbox_file.size(key, payload) <= self._max_bytes
            stored = fits and self._storage.add(key, payload, epoch, self._seq)
            waiting = self._storage.bytes
            self._count_lost(0 if stored else 1)
        if not stored:
            _log.warning("outbox.message_dropped", path=str(self.path), key=key, waiting_bytes=waiting)
        return stored

    def pending(self, limit: int, max_bytes: int | None = None) -> list[Item]:
        """The oldest messages, at most `limit`, and no more than fit into `max_bytes` (but at least one).

        Messages that were damaged on the disk are dropped and counted.

        Raises:
            OutboxError: the file cannot be read now.
        """
        with self._lock:
            items = self._storage.read(limit, max_bytes)
            self._count_lost(0)
        if items is None:
            raise OutboxError(f"{self.path}: the outbox cannot be read now; it is tried again")
        return items

    def oldest(self, key: str) -> bytes | None:
        """The payload of the oldest message with a key; None where none waits, or the file cannot be read now."""
        with self._lock:
            return self._storage.oldest(key)

    def acknowledge(self, rowids: Iterable[int]) -> None:
        """Forget messages that the broker has; row ids that `pending` did not give are passed over.

        Where the file cannot be written they are remembered, and deleted later; after a restart before that they are
        sent again.
        """
        with self._lock:
            self._storage.forget(rowids)
            self._count_lost(0)

    def depth(self) -> tuple[int, int]:
        """Messages and bytes waiting; touches no disk and takes no lock."""
        return self._storage.count, self._storage.bytes

    def close(self) -> None:
        """Close the file; what is in it stays."""
        with self._lock:
            self._storage.close()

    def _count_lost(self, refused: int) -> None:
        lost = refused + self._storage.lost
        self._storage.lost = 0
        self.dropped += lost
        for _ in range(lost):
            self._on_drop()
