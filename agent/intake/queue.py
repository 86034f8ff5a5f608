"""The bounded queue between the event loop, which may never wait, and the replay thread. Its room is shared fairly.

Bytes are counted from the moment a body is there until its replay is over: while it waits, while it is validated, and
while it is unpacked and parsed. A compressed body counts with what it unpacks to.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from agent.budget.shares import ModelKey

T = TypeVar("T")

NO_KEY: ModelKey = ("", "")
"""Of items that are not any model version's."""


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

    @property
    def key(self) -> ModelKey:
        """The model version that it is for."""
        return self.model, self.version


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T]):
    item: T
    nbytes: int
    number: int
    """Of its arrival."""


class ByteQueue(Generic[T]):
    """First in, first out for each key, bounded in bytes and in items over all keys.

    When it is full, the new item is refused, unless another key holds more than the new item's: then that key's newest
    items are pushed out. So one that floods the queue loses its own.
    """

    def __init__(self, max_bytes: int, max_items: int, on_pushed_out: Callable[[T], None] = lambda item: None) -> None:
        """``on_pushed_out`` hears of items that were in the queue and had to leave it; it may not block."""
        if max_bytes < 1 or max_items < 1:
            raise ValueError("max_bytes and max_items must be at least 1")
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._on_pushed_out = on_pushed_out
        self._waiting: dict[ModelKey, deque[_Waiting[T]]] = {}
        self._key_bytes: dict[ModelKey, int] = {}
        self._items = 0
        self._bytes = 0
        self._held = 0
        self._number = 0
        self._refused: dict[ModelKey, int] = {}
        self._closed = False
        # A plain lock: both sides hold it for a few instructions only, so the event loop never waits noticeably.
        self._changed = threading.Condition(threading.Lock())

    def offer(self, item: T, nbytes: int, key: ModelKey = NO_KEY) -> bool:
        """Add an item that weighs `nbytes`. Never blocks; False where there is no room, or the queue is closed."""
        with self._changed:
            pushed_out = None if self._closed else self._make_room(key, nbytes)
            if pushed_out is None:
                self._refused[key] = self._refused.get(key, 0) + 1
                return False
            self._number += 1
            self._waiting.setdefault(key, deque()).append(_Waiting(item, nbytes, self._number))
            self._count(key, 1, nbytes)
            self._changed.notify()
        for other in pushed_out:
            self._on_pushed_out(other)
        return True

    def take(self, max_items: int, timeout: float) -> list[T]:
        """Up to `max_items` of the oldest items; waits up to `timeout` seconds for the first, not for more."""
        with self._changed:
            self._wait(timeout)
            taken: list[T] = []
            while self._items and len(taken) < max_items:
                oldest = min(self._waiting, key=lambda key: self._waiting[key][0].number)
                taken.append(self._pop(oldest).item)
            return taken

    def take_turn(
        self,
        choose: Callable[[Collection[ModelKey]], ModelKey],
        most: Callable[[ModelKey, bool], int],
        timeout: float,
    ) -> tuple[ModelKey, list[T], int] | None:
        """The oldest items of one key, and their bytes, which count as held until they are released.

        None where none came.

        Args:
            choose: which of the keys that wait, in order of arrival.
            most: items to take of a key; told whether others wait.
            timeout: seconds to wait for the first.
        """
        with self._changed:
            self._wait(timeout)
            if not self._items:
                return None
            waiting = sorted(self._waiting, key=lambda key: self._waiting[key][0].number)
            key = choose(waiting)
            count = min(max(1, most(key, len(waiting) > 1)), len(self._waiting[key]))
            taken = [self._pop(key) for _ in range(count)]
            nbytes = sum(one.nbytes for one in taken)
            self._held += nbytes
            return key, [one.item for one in taken], nbytes

    def hold(self, nbytes: int) -> bool:
        """Counts bytes that are not in the queue yet against its bound; False where there is no room for them."""
        with self._changed:
            if self._closed or self._bytes + self._held + nbytes > self._max_bytes:
                return False
            self._held += nbytes
            return True

    def release(self, nbytes: int) -> None:
        """Counts so many held bytes no longer."""
        with self._changed:
            self._held -= nbytes

    def close(self) -> None:
        """Refuse new items and wake who waits in `take`, which still hands out what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def depth(self) -> tuple[int, int]:
        """Items that wait now, and all bytes that count."""
        return self._items, self._bytes + self._held

    @property
    def refused(self) -> int:
        """Items that there was no room for, or that were pushed out, ever."""
        return sum(list(self._refused.values()))

    def refused_of(self, key: ModelKey) -> int:
        """Of these, a key's."""
        return self._refused.get(key, 0)

    def keep(self, keys: Collection[ModelKey]) -> None:
        """Counts what was refused of other keys than these under no key."""
        with self._changed:
            for key in self._refused.keys() - set(keys) - {NO_KEY}:
                self._refused[NO_KEY] = self._refused.get(NO_KEY, 0) + self._refused.pop(key)

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1, in bytes or items, whichever is fuller."""
        return max(self._items / self._max_items, self._bytes / self._max_bytes)

    def fill_of(self, key: ModelKey) -> float:
        """How full a key's fair part of it is, 0 to 1: the whole where no other key waits."""
        with self._changed:
            return min(1.0, self._share(key) * max(1, len(self._waiting)))

    def _wait(self, timeout: float) -> None:
        self._changed.wait_for(lambda: self._items or self._closed, timeout)

    def _share(self, key: ModelKey, items: int = 0, nbytes: int = 0) -> float:
        """What a key holds of the queue, with so much more."""
        items += len(self._waiting.get(key, ()))
        return max(items / self._max_items, (self._key_bytes.get(key, 0) + nbytes) / self._max_bytes)

    def _make_room(self, key: ModelKey, nbytes: int) -> list[T] | None:
        """The items that were pushed out for one more; None, and nothing is changed, where there is no room to make."""
        wanted = self._share(key, 1, nbytes)
        victims: dict[ModelKey, int] = {}
        items, total = self._items, self._bytes
        while items + 1 > self._max_items or total + self._held + nbytes > self._max_bytes:
            shares = {other: self._without(other, victims.get(other, 0)) for other in self._waiting if other != key}
            largest = max(shares, key=lambda other: shares[other], default=None)
            if largest is None or shares[largest] <= wanted:
                return None
            place = len(self._waiting[largest]) - 1 - victims.get(largest, 0)
            total -= self._waiting[largest][place].nbytes
            items -= 1
            victims[largest] = victims.get(largest, 0) + 1
        pushed_out = []
        for other, count in victims.items():
            self._refused[other] = self._refused.get(other, 0) + count
            pushed_out += [self._pop(other, newest=True).item for _ in range(count)]
        return pushed_out

    def _without(self, key: ModelKey, newest: int) -> float:
        """What a key holds, without so many of its newest items."""
        waiting = self._waiting[key]
        gone = sum(waiting[len(waiting) - 1 - place].nbytes for place in range(newest))
        return self._share(key, -newest, -gone)

    def _pop(self, key: ModelKey, *, newest: bool = False) -> _Waiting[T]:
        waiting = self._waiting[key]
        one = waiting.pop() if newest else waiting.popleft()
        self._count(key, -1, -one.nbytes)
        if not waiting:
            del self._waiting[key], self._key_bytes[key]
        return one

    def _count(self, key: ModelKey, items: int, nbytes: int) -> None:
        self._items += items
        self._bytes += nbytes
        self._key_bytes[key] = self._key_bytes.get(key, 0) + nbytes
