"""Which response belongs to which request: by their ids, while both are under way.

Ids are the clients' and may repeat: a constant, a retry. So what ties a request to its response is a number of our own,
given where an id is open once only; where it is open twice nothing tells whose a response is, and none is tied.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

_ANSWERED_SECONDS = 600.0
"""A model whose responses have not been seen for so long has no mirror of them: its requests do not wait for any."""
_MOST_EXPIRED = 64
"""Ids forgotten in one call, so that a call on the event loop stays short."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What was drawn for one request, and holds for its response."""

    kept: bool
    """Whether it is in the sample."""
    draw: float
    """Drawn anew for each arrival, evenly from [0, 1): it is in every sample whose rate is above."""
    pair: int | None
    """Shared by a request and its response and by no others; None where no response can be told to be this one's."""


@dataclass(frozen=True, slots=True)
class _Open:
    half: Literal["request", "response", "unclear"]
    arrival: Arrival | None
    since: float


class Pairs:
    """The ids that are under way. Not thread-safe: it belongs to the thread of the intake."""

    def __init__(
        self,
        seconds: float = 30.0,
        most: int = 1 << 16,
        on_forget: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``seconds`` is how long one half waits for the other, ``most`` how many may wait.

        ``on_forget`` is called for each sampled request that was forgotten for want of room.
        """
        self._seconds = seconds
        self._most = most
        self._on_forget = on_forget
        self._clock = clock
        self._open: OrderedDict[bytes, _Open] = OrderedDict()
        self._answered: dict[str, float] = {}
        self._blind_until: dict[str, float] = {}
        self._last = 0

    def depth(self) -> int:
        """Ids that are noted now."""
        return len(self._open)

    def request(self, model: str, request_id: str, draw: Callable[[int | None], Arrival]) -> Arrival:
        """The arrival of a request: that of its response, where this came first, else a new one."""
        now = self._clock()
        if now - self._answered.get(model, -_ANSWERED_SECONDS) >= _ANSWERED_SECONDS:
            return draw(None)
        key, found = self._take(model, request_id, now)
        if found is None:
            arrival = draw(self._number())
            self._put(key, _Open("request", arrival, now))
            return arrival
        if found.half == "response" and found.arrival is not None:
            return found.arrival
        self._put(key, _Open("unclear", None, now))
        return draw(None)

    def response(self, model: str, request_id: str, draw: Callable[[int | None], Arrival]) -> Arrival | None:
        """The arrival of a response: its request's, else a new one that its request will have too.

        None where it cannot be told whose it is: the id is open twice, or its request may have been forgotten.
        """
        now = self._clock()
        if now - self._answered.get(model, -_ANSWERED_SECONDS) >= _ANSWERED_SECONDS:
            # Its request, and those of the responses that follow for a while, came before ids were noted.
            self._blind_until[model] = now + self._seconds
        self._answered[model] = now
        key, found = self._take(model, request_id, now)
        if found is None:
            if now < self._blind_until.get(model, now):
                return None
            arrival = draw(self._number())
            self._put(key, _Open("response", arrival, now))
            return arrival
        if found.half == "request":
            return found.arrival
        self._put(key, _Open("unclear", None, now))
        return None

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _take(self, model: str, request_id: str, now: float) -> tuple[bytes, _Open | None]:
        """The key of an id, and what was open under it; ids may be long, so that they are not kept themselves."""
        for _ in range(min(_MOST_EXPIRED, len(self._open))):
            oldest = next(iter(self._open))
            if now - self._open[oldest].since < self._seconds:
                break
            del self._open[oldest]
        name = f"{model}\0{request_id}".encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(name, digest_size=16).digest()
        found = self._open.pop(key, None)
        return key, None if found is None or now - found.since >= self._seconds else found

    def _put(self, key: bytes, item: _Open) -> None:
        self._open[key] = item
        if len(self._open) > self._most:
            _, forgotten = self._open.popitem(last=False)
            # A response without a request may now be one whose request was forgotten.
            for name in self._answered:
                self._blind_until[name] = item.since + self._seconds
            if forgotten.arrival is not None and forgotten.arrival.kept:
                self._on_forget()
