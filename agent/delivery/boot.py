"""One process per outbox, and a number for each of its lives that was never used before.

Beside the outbox lies a small file `<outbox>.boot`, locked as long as the process lives, with the last boot epoch and a
checksum. The outbox keeps the epoch too; either may be lost or damaged, and the greater one counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path

import structlog

_log = structlog.get_logger()
_RANDOM_BITS = 20
_LAST_TICK = (1 << 42) - 1
"""In the year 2109; a clock that says more is wrong."""
MAX_EPOCH = (_LAST_TICK + 1 << _RANDOM_BITS) - 1
"""Greater ones are damage: the wire and Postgres hold 63 bits."""
_BYTES = 30
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENFILE, errno.EMFILE)


class OutboxError(RuntimeError):
    """The outbox cannot be used; the message names the file."""


def is_epoch(value: object) -> bool:
    """Whether a value read from a file can have been a boot epoch."""
    return isinstance(value, int) and 0 < value <= MAX_EPOCH


def next_epoch(known: int, now_ms: int, random_bits: Callable[[int], int] = secrets.randbits) -> int:
    """An epoch greater than `known`, the greatest that is still remembered (0: none).

    The upper bits are milliseconds since 1970, or one more than those of `known`, whichever is greater. The lower 20
    are random: so lives share no epoch even where every memory of former ones was lost and the clock went back.
    """
    tick = max(min(now_ms, _LAST_TICK), (known >> _RANDOM_BITS) + 1, 1)
    return min(tick, _LAST_TICK) << _RANDOM_BITS | random_bits(_RANDOM_BITS)


class Boot:
    """The locked file with the last boot epoch."""

    def __init__(self, outbox: Path) -> None:
        """Locks the file beside `outbox`, whose folder must exist.

        Raises:
            OutboxError: another process has the lock, or the folder is none to write to.
        """
        self._path = outbox.with_name(f"{outbox.name}.boot")
        self._file: int | None = None
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise OutboxError(f"{outbox}: cannot be used ({self._path.name}: {error.strerror})") from error
            _log.error("outbox.boot_file_failed", path=str(self._path), error=str(error))
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise OutboxError(f"{outbox}: another process uses this outbox") from error
        except OSError as error:  # a file system without locks; SQLite has one of its own
            _log.warning("outbox.boot_file_unlocked", path=str(self._path), error=str(error))

    def last(self) -> int:
        """The epoch that was written last; 0 where there is none to be read."""
        if self._file is None:
            return 0
        try:
            digits, _, check = os.pread(self._file, _BYTES, 0).partition(b" ")
            epoch = int(digits)
            return epoch if is_epoch(epoch) and check.strip() == _check(digits) else 0
        except (OSError, ValueError):  # damaged: the outbox itself and the clock have to do
            return 0

    def write(self, epoch: int) -> None:
        """Puts an epoch on the disk before it is used. A failure is logged: the outbox keeps the epoch, too."""
        if self._file is None:
            return
        digits = b"%020d" % epoch
        try:
            # In place, all in one sector: needs no room on a full disk, and a torn write fails the checksum.
            os.pwrite(self._file, (digits + b" " + _check(digits)).ljust(_BYTES - 1) + b"\n", 0)
            os.fsync(self._file)
        except OSError as error:
            _log.error("outbox.boot_file_failed", path=str(self._path), error=str(error))

    def close(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def _check(digits: bytes) -> bytes:
    return b"%08x" % zlib.crc32(digits)
