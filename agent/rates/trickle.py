"""Which of the sampled requests are compared: a share of them, and no more than so many a minute, shared fairly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.budget.shares import ModelKey

_ACTIVE_SECONDS = 60.0
"""A version that asked for nothing for so long has no part of the room."""


@dataclass(slots=True)
class _Share:
    """A version's fair part of the minute."""

    room: float
    asked: float


class Trickle:
    """Chooses by the draw that sampling uses, so that both halves of a request and response are chosen alike.

    The choice is nested in sampling's: what is compared at a low sampling rate is compared at a higher one too.
    All methods may be called from any thread.
    """

    def __init__(
        self, sample_rate: float, rate: float, per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``rate`` is the share of the sampled requests, whose share of all is ``sample_rate``; clock in seconds."""
        self._share = sample_rate * rate
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._room = float(per_minute)
        self._since = clock()
        self._shares: dict[ModelKey, _Share] = {}

    def keep(self, draw: float) -> bool:
        """Whether the request of this draw (`agent.rates.pairs.Arrival`) is in the share."""
        return draw < self._share

    def take(self, requests: int, key: ModelKey = ("", "")) -> bool:
        """Whether this minute has room for so many requests of a model version; if so, it is taken.

        Half of the room is for those that have not had their fair part of it. A single item with more requests than fit
        a minute passes when the minute is still whole, and uses it up.
        """
        with self._lock:
            now = self._clock()
            earned = (now - self._since) * self._per_minute / 60
            self._since = now
            self._room = min(self._per_minute, self._room + earned)
            for other in [one for one, share in self._shares.items() if now - share.asked > _ACTIVE_SECONDS]:
                del self._shares[other]
            fair = self._per_minute / len(self._shares.keys() | {key})
            for share in self._shares.values():
                share.room = min(fair, share.room + earned / len(self._shares))
            own = self._shares.setdefault(key, _Share(fair, now))
            own.asked = now
            wanted = min(requests, self._per_minute)
            if self._room < wanted:
                return False
            if own.room < min(wanted, fair) and self._room - wanted < self._per_minute / 2:
                return False
            self._room -= wanted
            own.room = max(0.0, own.room - wanted)
            return True
