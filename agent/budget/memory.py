"""Arenas of memory: whoever wants some takes a lease, or is refused; what is leased never exceeds the limit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

_MIB = 1 << 20


class NoRoom(Exception):
    """An arena has no room for a lease; the message says how much was wanted and which option sets the limit."""


class Lease:
    """Memory that is spoken for until it is released. Released once, from any thread, also by the garbage collector."""

    def __init__(self, owner: str, nbytes: int, released: deque[tuple[str, int]]) -> None:
        self.owner = owner
        self.nbytes = nbytes
        self._released = released
        self._held: deque[None] = deque([None])

    def release(self) -> None:
        """Gives it back; again does nothing."""
        try:
            self._held.pop()
        except IndexError:
            return
        self._released.append((self.owner, self.nbytes))


class Arena:
    """So many bytes for all owners together. All methods may be called from any thread."""

    def __init__(
        self, what: str, limit: int, option: str, on_refused: Callable[[str], None] = lambda owner: None
    ) -> None:
        """``what`` and ``option`` are for messages: "GPU memory", "--gpu-memory-mib"; ``on_refused`` gets the owner."""
        self.limit = limit
        self._what = what
        self._option = option
        self._on_refused = on_refused
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}
        # Releases come from finalizers too, which may run in the midst of a lease: they are noted without the lock.
        self._released: deque[tuple[str, int]] = deque()

    def lease(self, owner: str, most: int, least: int | None = None) -> Lease:
        """``most`` bytes, or what is left of them where that is ``least`` or more; raises NoRoom."""
        least = most if least is None else min(least, most)
        with self._lock:
            self._settle()
            left = self.limit - sum(self._used.values())
            granted = min(most, left)
            if granted >= least:
                self._used[owner] = self._used.get(owner, 0) + granted
                return Lease(owner, granted, self._released)
        self._on_refused(owner)
        raise NoRoom(
            f"no room for {_mib(least)} MiB of {self._what} for {owner}: {_mib(max(left, 0))} of "
            f"{_mib(self.limit)} MiB are free; raise {self._option}, or leave out a model or version"
        )

    def used(self, owner: str | None = None) -> int:
        """Bytes that are leased now, by all or one owner."""
        with self._lock:
            self._settle()
            return sum(self._used.values()) if owner is None else self._used.get(owner, 0)

    def _settle(self) -> None:
        while self._released:
            owner, nbytes = self._released.popleft()
            self._used[owner] -= nbytes


def _mib(nbytes: int) -> int:
    return -(-nbytes // _MIB)
