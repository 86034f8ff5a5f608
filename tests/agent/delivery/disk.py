"""A disk that fails when told to: SQLite's own system calls, replaced as its test suite replaces them.

SQLite lets a program put functions in the place of its `write` and its like (`xSetSystemCall` of its unix VFS). Here
they can be slow, find no room, fail, or call someone before each write, who may copy the files as a kill at that moment
would leave them. Only files below one folder are concerned.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITE = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, use_errno=True)
_PWRITE = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, use_errno=True
)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int64, use_errno=True)
_READ = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, use_errno=True)
_PREAD = _PWRITE
_CALLS: dict[str, Any] = {
    "write": _WRITE,
    "pwrite": _PWRITE,
    "pwrite64": _PWRITE,
    "ftruncate": _TRUNCATE,
    "read": _READ,
    "pread": _PREAD,
    "pread64": _PREAD,
}


class _Vfs(ctypes.Structure):
    """struct sqlite3_vfs, version 3; https://www.sqlite.org/c3ref/vfs.html"""

    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        ("others", ctypes.c_void_p * 13),
        ("xSetSystemCall", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)),
        ("xGetSystemCall", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)),
    )


def _vfs() -> Any:
    """The default VFS of the very SQLite that Python's module uses; None where it cannot be reached."""
    try:
        find = ctypes.CDLL(_sqlite3.__file__).sqlite3_vfs_find
    except (OSError, AttributeError):  # linked into the interpreter, without its symbols
        return None
    find.restype, find.argtypes = ctypes.POINTER(_Vfs), [ctypes.c_char_p]
    found = find(None)
    return found if found and found.contents.iVersion >= 3 else None


AVAILABLE = _vfs() is not None
WHY_NOT = "Python's SQLite cannot be given other system calls"


class Disk:
    """What happens to files below `folder`, while `installed`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before_write: Callable[[], None] | None = None
        self.quota: int | None = None
        """Bytes that all files together may have; None for no limit."""
        self.write_error: int | None = None
        """errno of every write."""
        self.read_error: int | None = None
        self.delay = 0.0
        """Seconds that each write takes."""
        self.writes = 0
        self._originals: dict[str, Any] = {}

    def used(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def heal(self) -> None:
        """All is well again."""
        self.quota = self.write_error = self.read_error = self.before_write = None
        self.delay = 0.0

    @contextmanager
    def installed(self) -> Iterator[Disk]:
        """SQLite's system calls go by this disk until the end of the block."""
        vfs = _vfs()
        hooks = []
        for name, prototype in _CALLS.items():
            address = vfs.contents.xGetSystemCall(vfs, name.encode())
            if not address:  # not what this build of SQLite uses
                continue
            self._originals[name] = prototype(address)
            hook = prototype(getattr(self, f"_{name.removesuffix('64')}")(name))
            hooks.append(hook)  # kept alive
            vfs.contents.xSetSystemCall(vfs, name.encode(), ctypes.cast(hook, ctypes.c_void_p))
        try:
            yield self
        finally:
            for name in self._originals:
                vfs.contents.xSetSystemCall(vfs, name.encode(), None)
            self._originals.clear()

    def _write(self, name: str) -> Callable[[int, int, int], int]:
        def write(fd: int, data: int, size: int) -> int:
            refused = self._refused(fd, size, os.lseek(fd, 0, os.SEEK_CUR))
            return refused if refused else self._call(name, fd, data, size)

        return write

    def _pwrite(self, name: str) -> Callable[[int, int, int, int], int]:
        def pwrite(fd: int, data: int, size: int, offset: int) -> int:
            refused = self._refused(fd, size, offset)
            return refused if refused else self._call(name, fd, data, size, offset)

        return pwrite

    def _ftruncate(self, name: str) -> Callable[[int, int], int]:
        def ftruncate(fd: int, size: int) -> int:
            refused = self._refused(fd, 0, 0)
            return refused if refused else self._call(name, fd, size)

        return ftruncate

    def _read(self, name: str) -> Callable[[int, int, int], int]:
        def read(fd: int, data: int, size: int) -> int:
            return self._unreadable(fd) or self._call(name, fd, data, size)

        return read

    def _pread(self, name: str) -> Callable[[int, int, int, int], int]:
        def pread(fd: int, data: int, size: int, offset: int) -> int:
            return self._unreadable(fd) or self._call(name, fd, data, size, offset)

        return pread

    def _call(self, name: str, *arguments: int) -> int:
        ctypes.set_errno(0)
        return int(self._originals[name](*arguments))

    def _mine(self, fd: int) -> bool:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(f"{self.folder}{os.sep}")

    def _unreadable(self, fd: int) -> int:
        if self.read_error is None or not self._mine(fd):
            return 0
        ctypes.set_errno(self.read_error)
        return -1

    def _refused(self, fd: int, size: int, offset: int) -> int:
        """0 where the write may go on, else -1 with errno set."""
        if not self._mine(fd):
            return 0
        self.writes += 1
        if self.before_write is not None:
            self.before_write()
        if self.delay:
            time.sleep(self.delay)
        if self.write_error is not None:
            ctypes.set_errno(self.write_error)
            return -1
        growth = max(0, offset + size - os.fstat(fd).st_size)
        if self.quota is not None and growth and self.used() + growth > self.quota:
            ctypes.set_errno(errno.ENOSPC)
            return -1
        return 0
