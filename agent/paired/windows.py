"""Adds up comparisons per wall-clock-aligned window, as `agent.delivery.windowing` does summaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from agent import wire


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """The model version whose requests were compared."""

    model: str
    version: str
    digest: str


_Key = tuple[ServedVersion, int, wire.BaselineKind, str, str, str]


class ComparisonWindows:
    """Open windows of one agent. Not thread-safe: it belongs to the thread that compares.

    A comparison that arrives after its window was sent opens it again and is sent by itself: comparisons add up.
    """

    def __init__(self, window_ms: int, grace_ms: int) -> None:
        if window_ms <= 0:
            raise ValueError(f"a window of {window_ms} ms is no span of time")
        self._window_ms = window_ms
        self._grace_ms = grace_ms
        self._open: dict[_Key, wire.Comparison] = {}

    def span(self, arrived_ms: int) -> tuple[int, int]:
        """The window [start, end) of a request."""
        start = arrived_ms // self._window_ms * self._window_ms
        return start, start + self._window_ms

    def add(self, source: ServedVersion, comparison: wire.Comparison) -> tuple[str, ...]:
        """Adds one batch, whose start and end are those of its window.

        A probe whose number of channels is not what it was in this window is left out; returns the names of such.
        """
        key = (
            source,
            comparison.start_ms,
            comparison.kind,
            comparison.baseline,
            comparison.baseline_digest,
            comparison.provider,
        )
        known = self._open.get(key)
        if known is None:
            self._open[key] = comparison
            return ()
        probes = {item.probe.name: item.probe for item in known.probes}
        fitting = tuple(item for item in comparison.probes if probes.get(item.probe.name, item.probe) == item.probe)
        self._open[key] = wire.merge(known, replace(comparison, probes=fitting))
        kept = {item.probe.name for item in fitting}
        return tuple(item.probe.name for item in comparison.probes if item.probe.name not in kept)

    def close(self, now_ms: int) -> Iterator[tuple[ServedVersion, wire.Comparison]]:
        """The windows that ended more than the grace period ago, oldest first.

        Each is removed when the next is asked for, so that one whose delivery fails is still there.
        """
        return self._remove([key for key, item in self._open.items() if item.end_ms + self._grace_ms <= now_ms])

    def drain(self) -> Iterator[tuple[ServedVersion, wire.Comparison]]:
        """All windows, finished or not, removed as by `close`: for shutting down."""
        return self._remove(list(self._open))

    def _remove(self, keys: list[_Key]) -> Iterator[tuple[ServedVersion, wire.Comparison]]:
        for key in sorted(keys, key=lambda key: (key[1], key[0].model, key[2])):
            yield key[0], self._open[key]
            del self._open[key]
