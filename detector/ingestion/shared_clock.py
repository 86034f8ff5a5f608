"""The clock of ingestion: Postgres', which all detectors share, so that no detector's own clock moves anything.

A cut of one detector and the arrival of a message at another are compared with each other, and agents' clocks are put
right by them. A detector whose clock is an hour off would move its agents' windows by an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from detector.ingestion.records import RetryLater
from detector.store import StoreError

ASK_SECONDS = 2.0
"""From one question to the next; in between, time is carried on by a clock that nobody sets."""


class SharedClock:
    """Tells the time; belongs to the thread that ingests."""

    def __init__(self, ask: Callable[[], datetime], monotonic: Callable[[], float] = time.monotonic) -> None:
        """``ask`` is `Store.now`."""
        self._ask, self._monotonic = ask, monotonic
        self._told: datetime | None = None
        self._told_at = 0.0
        self._next = 0.0

    def __call__(self) -> datetime:
        """Now, late by no more than an answer takes. Raises RetryLater where Postgres has never answered."""
        if self._told is None or self._monotonic() >= self._next:
            try:
                self._told = self._ask()
                self._told_at = self._monotonic()
            except StoreError as error:
                if self._told is None:
                    raise RetryLater("postgres", str(error)) from error
            self._next = self._monotonic() + ASK_SECONDS
        return self._told + timedelta(seconds=self._monotonic() - self._told_at)
