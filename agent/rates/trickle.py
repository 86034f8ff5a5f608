"""Which of the sampled requests are compared: a share of them, and no more than so many a minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


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

    def keep(self, draw: float) -> bool:
        """Whether the request of this draw (`agent.rates.pairs.Arrival`) is in the share."""
        return draw < self._share

    def take(self, requests: int) -> bool:
        """Whether this minute has room for so many requests; if so, it is taken.

        A single item with more requests than fit a minute passes when the minute is still whole, and uses it up.
        """
        with self._lock:
            now = self._clock()
            self._room = min(self._per_minute, self._room + (now - self._since) * self._per_minute / 60)
            self._since = now
            if self._room < min(requests, self._per_minute):
                return False
            self._room -= min(requests, self._per_minute)
            return True
