"""Which of the sampled requests are compared: a share by hash, and no more than so many a minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agent.rates.sampling import Sampler


class Trickle:
    """Chooses by the hash that sampling uses, so every pod, and both halves of a request and response, choose alike.

    The choice is nested in sampling's: what is compared at a low sampling rate is compared at a higher one too.
    All methods may be called from any thread.
    """

    def __init__(
        self, sample_rate: float, rate: float, per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``rate`` is the share of the sampled requests, whose share of all is ``sample_rate``; clock in seconds."""
        self._sampler = Sampler(sample_rate * rate)
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._room = float(per_minute)
        self._since = clock()

    def keep(self, identity: bytes) -> bool:
        """Whether the request of this identity (`agent.rates.sampling.identity`) is in the share."""
        return self._sampler.chooses(identity)

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
