"""What heartbeats say of a model version's requests, counted where the metrics are."""

from __future__ import annotations

import threading

TALLIED = ("requests", "sampled", "replayed", "rejected", "dropped", "held")
"""What heartbeats say of a model version's requests."""


class Tally:
    """Requests of one model version since the agent's start, for its heartbeats; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(TALLIED, 0)

    def count(self, what: str, n: int = 1) -> None:
        """Adds to one of `TALLIED`."""
        with self._lock:
            self._counts[what] += n

    def read(self) -> dict[str, int]:
        """All counts, as of one moment."""
        with self._lock:
            return dict(self._counts)
