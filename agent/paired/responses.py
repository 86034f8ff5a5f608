"""Joins sampled requests with the responses that the server gave, whichever comes first. Bounded in bytes and time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Q = TypeVar("Q")
R = TypeVar("R")

DropReason = Literal["join_full", "join_duplicate", "response_missing", "request_missing"]
_MOST_ITEMS = 4096
_MOST_EXPIRED = 64
"""Entries dropped in one call, so that a call on the event loop stays short."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Q, R]):
    request: Q | None
    response: R | None
    nbytes: int
    since: float


class Joiner(Generic[Q, R]):
    """Requests and responses that wait for each other, by the number that `agent.rates.pairs` gave them both.

    All methods may be called from any thread; none blocks.
    """

    def __init__(
        self,
        max_bytes: int,
        max_seconds: float,
        on_drop: Callable[[DropReason], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._on_drop = on_drop
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: OrderedDict[int, _Waiting[Q, R]] = OrderedDict()
        self._bytes = 0

    def request(self, pair: int, item: Q, nbytes: int) -> tuple[Q, R] | None:
        """Puts a request in; both, if its response was waiting."""
        found = self._put(pair, item, None, nbytes)
        return None if found is None or found.response is None else (item, found.response)

    def response(self, pair: int, item: R, nbytes: int) -> tuple[Q, R] | None:
        """Puts a response in; both, if its request was waiting."""
        found = self._put(pair, None, item, nbytes)
        return None if found is None or found.request is None else (found.request, item)

    def depth(self) -> tuple[int, int]:
        """Items and bytes waiting now."""
        return len(self._waiting), self._bytes

    def expire(self) -> None:
        """Drops what has waited too long."""
        with self._lock:
            self._expire(_MOST_ITEMS)

    def _put(self, key: int, request: Q | None, response: R | None, nbytes: int) -> _Waiting[Q, R] | None:
        with self._lock:
            self._expire(_MOST_EXPIRED)
            found = self._waiting.get(key)
            if found is not None:
                if (found.request is None) == (request is None):
                    self._on_drop("join_duplicate")
                    return None
                del self._waiting[key]
                self._bytes -= found.nbytes
                return found
            if self._bytes + nbytes > self._max_bytes or len(self._waiting) >= _MOST_ITEMS:
                self._on_drop("join_full")
                return None
            self._waiting[key] = _Waiting(request, response, nbytes, self._clock())
            self._bytes += nbytes
            return None

    def _expire(self, most: int) -> None:
        oldest_kept = self._clock() - self._max_seconds
        for _ in range(min(most, len(self._waiting))):
            key, item = next(iter(self._waiting.items()))
            if item.since > oldest_kept:
                return
            del self._waiting[key]
            self._bytes -= item.nbytes
            self._on_drop("response_missing" if item.response is None else "request_missing")
