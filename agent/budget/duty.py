"""One duty cycle for all work: replay first, and comparing, holdouts and timing from what it leaves.

Work is paid for when it is done, since nobody knows before how long a run takes; then all rest until that is earned
again. A part of the duty cycle is kept for work other than replay, so that replay, however busy, cannot keep a new
version from being timed or a holdout from being run.

    balance   += share * time, at most a second's worth;   -= every second of work
    kept      += share * kept part * time, the same;        -= seconds of work that began for its sake
    replay    may begin while balance >= 0
    the rest  may begin while kept >= 0, or balance is at least half full, which it is only where replay leaves it
    comparing keeps its own, smaller duty cycle besides
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from agent.budget.shares import ModelKey

Work = Literal["replay", "paired", "holdout", "calibration"]
WORKS: tuple[Work, ...] = get_args(Work)

_SAVED_SECONDS = 1.0
"""Of earnings that may be saved up."""
_RECENT_SECONDS = 10.0
_NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class DutyLimits:
    """Shares of time, above 0 to 1."""

    share: float
    """Of all work together; 1 is one thread that never rests."""
    kept: float = 0.2
    """Of `share`, what is kept for work other than replay."""
    paired: float = 1.0
    """Most for comparing."""


class _Bucket:
    """Earns ``rate`` seconds a second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.most = rate * _SAVED_SECONDS
        self.seconds = self.most

    def earn(self, seconds: float, spent: float = 0.0) -> None:
        """So much time has passed, of which ``spent`` was work: that time earns, too, before the rest is capped."""
        self.seconds = min(self.most, self.seconds + seconds * self.rate - spent)

    def until(self, level: float) -> float:
        """Seconds until there is so much; what no clock can tell from none is none."""
        seconds = (level - self.seconds) / self.rate
        return seconds if seconds > _NOTHING else 0.0


class Duty:
    """The ledger of time. All methods may be called from any thread; none blocks."""

    def __init__(
        self,
        limits: DutyLimits,
        clock: Callable[[], float] = time.monotonic,
        on_work: Callable[[Work, ModelKey, float], None] = lambda work, key, seconds: None,
        on_deferred: Callable[[Work], None] = lambda work: None,
    ) -> None:
        """``clock`` in seconds; ``on_work`` hears of every charge, ``on_deferred`` when work has to wait."""
        self.limits = limits
        self._clock = clock
        self._on_work = on_work
        self._on_deferred = on_deferred
        self._lock = threading.Lock()
        self._balance = _Bucket(limits.share)
        self._kept = _Bucket(limits.share * limits.kept)
        self._paired = _Bucket(limits.paired)
        self._at = clock()
        self._begin = self._at
        self._used: dict[Work, float] = dict.fromkeys(WORKS, 0.0)
        self._recent: deque[tuple[float, float]] = deque()
        self._waiting: set[Work] = set()
        self._of_kept: set[Work] = set()

    def delay(self, work: Work) -> float:
        """Seconds until work of this kind may begin, as far as is known now; 0 where it may at once.

        To be asked before every piece of work, by the one thread that does work of its kind.
        """
        with self._lock:
            self._earn()
            if work == "replay":
                seconds = self._balance.until(0.0)
            else:
                kept, left = self._kept.until(0.0), self._balance.until(self._balance.most / 2)
                seconds = min(kept, left)
                (self._of_kept.add if left > 0 else self._of_kept.discard)(work)
                if work == "paired":
                    seconds = max(seconds, self._paired.until(0.0))
            begins = seconds > 0 and work not in self._waiting
            (self._waiting.add if seconds > 0 else self._waiting.discard)(work)
        if begins:
            self._on_deferred(work)
        return seconds

    def charge(self, work: Work, key: ModelKey, seconds: float) -> None:
        """Work of this kind, for this model version, took so long until now."""
        with self._lock:
            kept = seconds if work in self._of_kept else 0.0
            self._earn(seconds, kept, seconds if work == "paired" else 0.0)
            self._used[work] += seconds
            self._recent.append((self._at, seconds))
        self._on_work(work, key, seconds)

    def used(self, work: Work) -> float:
        """Seconds of such work, ever."""
        return self._used[work]

    def recent(self) -> float:
        """The share of the last ten seconds spent in work of all kinds."""
        with self._lock:
            now = self._clock()
            while self._recent and self._recent[0][0] < now - _RECENT_SECONDS:
                self._recent.popleft()
            busy = sum(seconds for _, seconds in self._recent)
        return busy / max(min(now - self._begin, _RECENT_SECONDS), busy, 1e-9)

    def _earn(self, spent: float = 0.0, kept: float = 0.0, paired: float = 0.0) -> None:
        now = self._clock()
        self._balance.earn(now - self._at, spent)
        self._kept.earn(now - self._at, kept)
        self._paired.earn(now - self._at, paired)
        self._at = now
