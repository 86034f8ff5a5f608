"""The bounded queue between the event loop, which may never wait, and the replay thread."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Captured:
    """A sampled request, or its response, as it came from the wire: not parsed, not decompressed."""

    model: str
    version: str
    body: bytes
    header_length: int | None
    """Length of the JSON part after decompression; None where the client did not say, 0 for a raw tensor."""
    encoding: str | None
    """Content-Encoding: None, "gzip" or "deflate"."""
    pair: int | None
    """What a request and its response share, and no others; None where no response is waited for."""
    arrived_ms: int
    """Unix milliseconds."""
    draw: float = 0.0
    """What was drawn for the request, 0 to 1: it is in every sample whose rate is above."""


class ByteQueue(Generic[T]):
    """First in, first out, bounded in bytes and in items. When it is full, the new item is refused."""

    def __init__(self, max_bytes: int, max_items: int) -> None:
        if max_bytes < 1 or max_items < 1:
            raise ValueError("max_bytes and max_items must be at least 1")
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._refused = 0
        self._closed = False
        # A plain lock: both sides hold it for a few instructions only, so the event loop never waits noticeably.
        self._changed = threading.Condition(threading.Lock())

    def offer(self, item: T, nbytes: int) -> bool:
        """Add an item that weighs `nbytes`. Never blocks; False where there is no room, or the queue is closed."""
        with self._changed:
            if self._closed or len(self._items) >= self._max_items or self._bytes + nbytes > self._max_bytes:
                self._refused += 1
                return False
            self._items.append((item, nbytes))
            self._bytes += nbytes
            self._changed.notify()
            return True

    def take(self, max_items: int, timeout: float) -> list[T]:
        """Up to `max_items` of the oldest items; waits up to `timeout` seconds for the first, not for more."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout)
            taken = [self._items.popleft() for _ in range(min(max_items, len(self._items)))]
            self._bytes -= sum(nbytes for _, nbytes in taken)
            return [item for item, _ in taken]

    def close(self) -> None:
        """Refuse new items and wake who waits in `take`, which still hands out what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def depth(self) -> tuple[int, int]:
        """Items and bytes waiting now."""
        return len(self._items), self._bytes

    @property
    def refused(self) -> int:
        """Items that there was no room for, ever."""
        return self._refused

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1, in bytes or items, whichever is fuller."""
        return max(len(self._items) / self._max_items, self._bytes / self._max_bytes)
