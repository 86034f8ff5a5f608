"""The replay loop: sampled requests in, windows of summaries into the outbox."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.capture.engine import EngineClosed
from agent.delivery.sender import Sender
from agent.delivery.windowing import Accumulator
from agent.instrument.pooled import Pooled
from agent.intake.oip import Limits, OipError, parse_request
from agent.intake.queue import ByteQueue, Captured
from agent.metrics import AgentMetrics
from agent.rates.governor import Budgets, rest_seconds
from agent.rates.throttle import Meter
from agent.repeats import Repeats
from agent.replay import ReplayError, batching
from agent.replay.batching import Tensors
from agent.replay.rows import Batch, Drawn, batches, draw, halves
from agent.serving.models import Models, Served, be_nice

_POLL_SECONDS = 0.25
_DUTY_SECONDS = 10.0
"""Over how long the duty cycle in the metrics is averaged."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What replay may take of the pod."""

    max_batch: int
    budgets: Budgets
    limits: Limits
    nice: int = 10
    """Nice level of the thread."""
    rows_per_request: int = 1
    """Rows of a request, drawn at random, that are replayed; each counts as a request."""


class Worker:
    """Replays what intake queued, within the budgets, and hands finished windows to the outbox."""

    def __init__(
        self,
        settings: WorkerSettings,
        models: Models,
        queue: ByteQueue[Captured],
        accumulator: Accumulator,
        sender: Sender,
        metrics: AgentMetrics,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        on_parsed: Callable[[Served, Captured, Tensors], None] = lambda served, item, inputs: None,
        rng: np.random.Generator | None = None,
    ) -> None:
        """``on_parsed`` sees every request before it is replayed; it may not block and may not raise."""
        self._settings = settings
        self._on_parsed = on_parsed
        self._models = models
        self._queue = queue
        self._accumulator = accumulator
        self._sender = sender
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._repeats = Repeats()
        self._rng = rng or np.random.default_rng()
        self.meter = Meter()

    def run(self, stop: threading.Event) -> None:
        """Replays until stopped, then hands over the windows that are still open."""
        be_nice(self._settings.nice)
        limit = self._settings.budgets.requests_per_second
        # A second's worth at most, so that a low limit means small batches and not long pauses.
        most = self._settings.max_batch if limit is None else max(1, min(self._settings.max_batch, int(limit)))
        turns: deque[tuple[float, float]] = deque()
        while not stop.is_set():
            begin = time.monotonic()
            items = self._queue.take(most, _POLL_SECONDS)
            taken = time.monotonic()
            self._replay(items)
            self._close_windows()
            busy = time.monotonic() - taken
            self.meter.taken += len(items)
            self.meter.busy_seconds += busy
            self._rest(rest_seconds(busy, len(items), self._settings.budgets), stop)
            turns.append((begin, busy))
            now = time.monotonic()
            while len(turns) > 1 and turns[1][0] < now - _DUTY_SECONDS:
                turns.popleft()
            self._metrics.duty_cycle.set(duty(turns, now))
        self._sender.windows(self._accumulator.drain())

    def _rest(self, seconds: float, stop: threading.Event) -> None:
        """Waits; windows that end meanwhile are sent all the same."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not stop.wait(min(left, _POLL_SECONDS)):
            self._close_windows()

    def _close_windows(self) -> None:
        self._sender.windows(self._accumulator.close(self._clock_ms()))

    def _replay(self, items: list[Captured]) -> None:
        by_model: dict[str, list[Captured]] = {}
        for item in items:
            by_model.setdefault(item.model, []).append(item)
        for model, group in by_model.items():
            served = self._models.served(model)
            if served is None:
                self._metrics.dropped_total.labels("model_gone").inc(len(group))
                continue
            current = [item for item in group if item.version == served.entry.version]
            # Requests to the former version, still queued when the new one was swapped in.
            self._metrics.dropped_total.labels("model_gone").inc(len(group) - len(current))
            self._replay_model(served, current)

    def _replay_model(self, served: Served, items: list[Captured]) -> None:
        axes, fixed = served.instrumented.batch_axes, served.engine.batch_size
        parsed: list[tuple[int, Drawn]] = []
        for item in items:
            inputs = self._parse(item, served)
            if inputs is not None:
                self._on_parsed(served, item, inputs)
                parsed.append((item.arrived_ms, draw(inputs, axes, fixed, self._settings.rows_per_request, self._rng)))
        rows = sum(len(drawn.kept) for _, drawn in parsed)
        lost = 0
        try:
            work = list(batches(parsed, axes, fixed, self._settings.max_batch))
        except Exception as error:  # a lack of memory, mostly
            lost = self._broken(served, rows, error)
            work = []
        for batch in work:
            try:
                lost += self._run_batch(served, batch)
            except Exception as error:  # it may cost this batch, not the loop, other batches or other models
                lost += self._broken(served, len(batch.kept), error)
        self.meter.replayed += len(parsed) - (round(len(parsed) * lost / rows) if rows else 0)

    def _broken(self, served: Served, rows: int, error: Exception) -> int:
        """Counts and logs what nobody foresaw; an error's text may quote values, so only its type is told."""
        self._metrics.dropped_total.labels("internal").inc(rows)
        kind = type(error).__name__
        where = traceback.extract_tb(error.__traceback__)[-1]
        self._repeats.warning(
            "replay.broken",
            (served.entry.model, kind),
            model=served.entry.model,
            version=served.entry.version,
            error=kind,
            at=f"{Path(where.filename).name}:{where.lineno}",
        )
        return rows

    def _parse(self, item: Captured, served: Served) -> Tensors | None:
        try:
            request = parse_request(
                item.body,
                item.header_length,
                served.metadata.inputs,
                encoding=item.encoding,
                limits=self._settings.limits,
            )
            try:
                batching.count(request.inputs, served.instrumented.batch_axes)
            except (ValueError, IndexError) as error:
                raise OipError("shape", str(error)) from error
        except OipError as error:
            self._metrics.rejected_total.labels(item.model, error.reason).inc()
            kind = (item.model, error.reason)
            self._repeats.warning(
                "request.rejected", kind, model=item.model, reason=error.reason, message=error.message
            )
            return None
        except Exception as error:  # a body is hostile: whatever it does to the parser, the loop goes on
            self._metrics.rejected_total.labels(item.model, "internal").inc()
            self._repeats.warning(
                "request.rejected",
                (item.model, "internal"),
                model=item.model,
                reason="internal",
                message=type(error).__name__,
            )
            return None
        return request.inputs

    def _run_batch(self, served: Served, batch: Batch) -> int:
        """Replays a batch; returns how many of its rows are lost.

        A batch that fails is halved until the rows at fault are alone: their good neighbours lose nothing.
        """
        entry, requests = served.entry, len(batch.kept)
        begin = time.perf_counter()
        try:
            pooled = served.engine.run(batch.inputs)
        except EngineClosed:
            self._metrics.dropped_total.labels("model_gone").inc(requests)
            return requests
        except ReplayError as error:
            if requests > 1 and not batch.whole:
                return sum(self._run_batch(served, half) for half in halves(batch, served.instrumented.batch_axes))
            self._metrics.rejected_total.labels(entry.model, "replay_failed").inc()
            kind = (entry.model, entry.version)
            self._repeats.warning("replay.failed", kind, model=entry.model, version=entry.version, reason=str(error))
            return requests
        self._metrics.replay_seconds.observe(time.perf_counter() - begin)
        kept = batch.kept
        counted = {
            name: Pooled(values.mean[kept], values.maximum[kept], values.fraction[kept])
            for name, values in pooled.items()
        }
        probes = served.instrumented.probes
        self._accumulator.add(entry.model, entry.version, served.digest, probes, counted, batch.arrived_ms)
        self._metrics.replayed_total.labels(entry.model, entry.version).inc(requests)
        return 0


def duty(turns: Iterable[tuple[float, float]], now: float) -> float:
    """The share of time that was busy since the first of some turns, each (its begin, its busy seconds)."""
    listed = list(turns)
    return sum(busy for _, busy in listed) / max(now - listed[0][0], 1e-9) if listed else 0.0
