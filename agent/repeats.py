"""Log lines that a client can repeat at will: one per interval for each kind, with the number of those left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger()


class Repeats:
    """Not thread-safe: it belongs to one loop."""

    def __init__(self, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        """``seconds`` is the least time between two lines of a kind."""
        self._seconds = seconds
        self._clock = clock
        self._said: dict[tuple[str, ...], tuple[float, int]] = {}

    def warning(self, event: str, kind: tuple[str, ...], **fields: Any) -> None:
        """Logs the event unless one of its kind was logged lately; of kinds there must be few.

        A line says in ``suppressed`` how many before it were left out.
        """
        now = self._clock()
        at, suppressed = self._said.get((event, *kind), (now - self._seconds, 0))
        if now - at < self._seconds:
            self._said[event, *kind] = at, suppressed + 1
            return
        self._said[event, *kind] = now, 0
        log.warning(event, **fields, suppressed=suppressed)
