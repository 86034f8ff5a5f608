"""Accumulates pooled values into wall-clock-aligned windows of mergeable summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agent import summary
from agent.instrument.pooled import Pooled
from agent.summary import Summary
from agent.summary.histogram import Ints
from agent.wire import Probe


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """Where a request belongs: which model version, and which window [start_ms, end_ms)."""

    model: str
    version: str
    digest: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """A window that takes no more requests; ``probes`` are those of the model version it observed, in graph order."""

    slot: Slot
    probes: tuple[Probe, ...]
    summaries: dict[str, Summary]


@dataclass(slots=True)
class _Open:
    probes: tuple[Probe, ...]
    summaries: dict[str, Summary] = field(default_factory=dict)
    buffered: dict[str, list[Pooled]] = field(default_factory=dict)
    rows: int = 0


class Accumulator:
    """Open windows of one agent. Not thread-safe: it belongs to the thread that replays.

    Windows start at multiples of ``window_ms`` since the Unix epoch, so all agents' windows line up. Pooled rows are
    summarised ``buffer_rows`` at a time, which costs one pass per buffer instead of one per batch.
    """

    def __init__(self, window_ms: int, grace_ms: int, buffer_rows: int = 64) -> None:
        if window_ms <= 0:
            raise ValueError(f"a window of {window_ms} ms is no span of time")
        self._window_ms = window_ms
        self._grace_ms = grace_ms
        self._buffer_rows = buffer_rows
        self._open: dict[Slot, _Open] = {}

    def add(
        self,
        model: str,
        version: str,
        digest: str,
        probes: tuple[Probe, ...],
        pooled: Mapping[str, Pooled],
        arrived_ms: Ints,
    ) -> None:
        """Adds one batch; ``arrived_ms`` has shape (requests,), as every pooled array's first axis."""
        starts = arrived_ms // self._window_ms * self._window_ms
        for start in np.unique(starts).tolist():
            slot = Slot(model, version, digest, start, start + self._window_ms)
            window = self._open.setdefault(slot, _Open(probes))
            rows = starts == start
            for name, values in pooled.items():
                window.buffered.setdefault(name, []).append(_take(values, rows))
            window.rows += int(rows.sum())
            if window.rows >= self._buffer_rows:
                _summarise(window)

    def holds(self, model: str, version: str, digest: str) -> bool:
        """Whether a window of that model version is open."""
        return any((slot.model, slot.version, slot.digest) == (model, version, digest) for slot in self._open)

    def close(self, now_ms: int) -> list[ClosedWindow]:
        """Removes and returns the windows that ended more than the grace period ago, oldest first."""
        return self._remove([slot for slot in self._open if slot.end_ms + self._grace_ms <= now_ms])

    def drain(self) -> list[ClosedWindow]:
        """Removes and returns all windows, finished or not: for shutting down."""
        return self._remove(list(self._open))

    def _remove(self, slots: list[Slot]) -> list[ClosedWindow]:
        removed = []
        for slot in sorted(slots, key=lambda slot: (slot.start_ms, slot)):
            window = self._open.pop(slot)
            _summarise(window)
            removed.append(ClosedWindow(slot, window.probes, window.summaries))
        return removed


def _take(values: Pooled, rows: NDArray[np.bool_]) -> Pooled:
    return Pooled(values.mean[rows], values.maximum[rows], values.fraction[rows])


def _summarise(window: _Open) -> None:
    for name, parts in window.buffered.items():
        fresh = summary.from_pooled(
            np.concatenate([part.mean for part in parts]),
            np.concatenate([part.maximum for part in parts]),
            np.concatenate([part.fraction for part in parts]),
        )
        known = window.summaries.get(name)
        window.summaries[name] = fresh if known is None else summary.merge(known, fresh)
    window.buffered.clear()
    window.rows = 0
