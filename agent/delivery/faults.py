"""What an error of SQLite says of the outbox: its file is damaged, or the machine does not let it be used now."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_FORBIDDEN = {sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH}
_OF_THE_MACHINE = {
    *_BUSY,
    *_FORBIDDEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_MISUSE,
}
"""All else that SQLite says of these few statements is said of the file."""


class Damaged(sqlite3.DatabaseError):
    """The file contradicts itself."""


def code(error: Exception) -> int | None:
    """SQLite's primary result code; None where the error is not SQLite's own."""
    extended = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def words(error: Exception) -> str:
    """For the log. Not SQLite's own text, which can quote what is in the file."""
    if isinstance(error, Damaged):
        return str(error)
    name = getattr(error, "sqlite_errorname", None) or getattr(error, "strerror", None)
    return str(name or type(error).__name__)


def is_damage(error: Exception) -> bool:
    """Whether the file's content is at fault, so that trying again will not help."""
    if not isinstance(error, sqlite3.Error) or isinstance(error, sqlite3.ProgrammingError):
        return False
    return code(error) not in _OF_THE_MACHINE


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Around statements: a damaged file can make names in SQLite's messages undecodable, and that is damage, too.

    Raises:
        Damaged: instead of UnicodeDecodeError.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise Damaged("text in the file is no UTF-8") from error


def is_busy(error: Exception) -> bool:
    """Whether another process has the file."""
    return code(error) in _BUSY


def is_forbidden(error: Exception) -> bool:
    """Whether the file cannot be opened as it lies there: a matter of rights or of the path."""
    return code(error) in _FORBIDDEN or isinstance(error, PermissionError)


def is_sealed(error: Exception, path: Path) -> bool:
    """Whether a file that the system lets us write says itself that nobody may: a damaged header."""
    return code(error) == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK)


def is_full(error: Exception) -> bool:
    """Whether the disk has no room."""
    return code(error) == sqlite3.SQLITE_FULL


def is_io(error: Exception) -> bool:
    """Whether the disk refused to read or write."""
    return code(error) == sqlite3.SQLITE_IOERR
