"""Accumulates pooled values into wall-clock-aligned windows of mergeable summaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agent import summary
from agent.delivery.drops import ProbeDrop, ProbeDropReason
from agent.delivery.versions import Version
from agent.delivery.widths import Widths
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
    lost: set[str] = field(default_factory=set)
    """Probes that this window goes without."""
    rows: int = 0

    def lose(self, name: str) -> int:
        """Goes without a probe; how many of its requests are forgotten."""
        self.lost.add(name)
        known, parts = self.summaries.pop(name, None), self.buffered.pop(name, [])
        return (known.n if known is not None else 0) + sum(len(part.mean) for part in parts)


class Accumulator:
    """Open windows of one agent. Not thread-safe: it belongs to the thread that replays.

    Windows start at multiples of ``window_ms`` since the Unix epoch, so all agents' windows line up. Pooled rows are
    summarised ``buffer_rows`` at a time, which costs one pass per buffer instead of one per batch.

    Whatever is wrong with the values of one probe costs that probe alone: windows go without it, and ``on_drop`` is
    told. A window stays until it is delivered.
    """

    def __init__(
        self,
        window_ms: int,
        grace_ms: int,
        buffer_rows: int = 64,
        on_drop: Callable[[ProbeDrop], None] = lambda drop: None,
    ) -> None:
        """``on_drop`` may not raise."""
        if window_ms <= 0:
            raise ValueError(f"a window of {window_ms} ms is no span of time")
        self._window_ms = window_ms
        self._grace_ms = grace_ms
        self._buffer_rows = buffer_rows
        self._on_drop = on_drop
        self._open: dict[Slot, _Open] = {}
        self._widths = Widths()

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
        fitting = self._fitting((model, version, digest), probes, pooled, len(arrived_ms))
        starts = arrived_ms // self._window_ms * self._window_ms
        for start in np.unique(starts).tolist():
            slot = Slot(model, version, digest, start, start + self._window_ms)
            window = self._open.setdefault(slot, _Open(probes))
            rows = starts == start
            count = int(rows.sum())
            for name, values in fitting.items():
                if name in window.lost:
                    self._tell(slot, name, "summary", count, "the window goes without it")
                else:
                    window.buffered.setdefault(name, []).append(_take(values, rows))
            window.rows += count
            if window.rows >= self._buffer_rows:
                self._summarise(slot, window)

    def holds(self, model: str, version: str, digest: str) -> bool:
        """Whether a window of that model version is open."""
        return any((slot.model, slot.version, slot.digest) == (model, version, digest) for slot in self._open)

    def close(self, now_ms: int) -> Iterator[ClosedWindow]:
        """The windows that ended more than the grace period ago, oldest first.

        Each is removed when the next is asked for, so that one whose delivery fails is still there.
        """
        return self._remove([slot for slot in self._open if slot.end_ms + self._grace_ms <= now_ms])

    def drain(self) -> Iterator[ClosedWindow]:
        """All windows, finished or not, removed as by `close`: for shutting down."""
        return self._remove(list(self._open))

    def _remove(self, slots: list[Slot]) -> Iterator[ClosedWindow]:
        for slot in sorted(slots, key=lambda slot: (slot.start_ms, slot)):
            window = self._open[slot]
            self._summarise(slot, window)
            yield ClosedWindow(slot, window.probes, window.summaries)
            del self._open[slot]

    def _fitting(
        self, version: Version, probes: tuple[Probe, ...], pooled: Mapping[str, Pooled], requests: int
    ) -> dict[str, Pooled]:
        """The values that can be taken in; the probes of the others are dropped, from all windows of the version."""
        known = {probe.name: probe for probe in probes}
        fitting: dict[str, Pooled] = {}
        for name, values in pooled.items():
            shapes = {values.mean.shape, values.maximum.shape, values.fraction.shape}
            if len(shapes) > 1 or values.mean.ndim != 2 or len(values.mean) != requests or name not in known:
                message = f"pooled values of shapes {sorted(shapes)} for {requests} requests"
                self._on_drop(ProbeDrop(version[0], version[1], name, "shape", requests, message))
                continue
            fault = self._widths.fault(version, known[name], values.mean.shape[1])
            if fault is None:
                fitting[name] = values
                continue
            for slot, window in self._open.items():
                if (slot.model, slot.version, slot.digest) == version:
                    requests_before = window.lose(name)
                    if requests_before:
                        self._tell(slot, name, "width", requests_before, fault)
            self._on_drop(ProbeDrop(version[0], version[1], name, "width", requests, fault))
        return fitting

    def _summarise(self, slot: Slot, window: _Open) -> None:
        """Takes what is buffered into the window's summaries; never raises."""
        for name, parts in list(window.buffered.items()):
            try:
                fresh = summary.from_pooled(
                    np.concatenate([part.mean for part in parts]),
                    np.concatenate([part.maximum for part in parts]),
                    np.concatenate([part.fraction for part in parts]),
                )
                known = window.summaries.get(name)
                merged = fresh if known is None else summary.merge(known, fresh)
            except Exception as error:  # whatever it is, it may cost this probe, not the window and not other models
                # The type alone: an error's text may quote values.
                self._tell(slot, name, "summary", window.lose(name), f"{type(error).__name__} in summarising it")
            else:
                window.summaries[name] = merged
                del window.buffered[name]
        window.rows = 0

    def _tell(self, slot: Slot, name: str, reason: ProbeDropReason, requests: int, message: str) -> None:
        self._on_drop(ProbeDrop(slot.model, slot.version, name, reason, requests, message))


def _take(values: Pooled, rows: NDArray[np.bool_]) -> Pooled:
    return Pooled(values.mean[rows], values.maximum[rows], values.fraction[rows])
