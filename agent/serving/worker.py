"""The replay loop: sampled requests in, windows of summaries into the outbox."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
        on_pooled: Callable[[Served, Tensors, Mapping[str, Pooled]], None] = lambda served, inputs, pooled: None,
    ) -> None:
        """``on_parsed`` sees every request before it is replayed, ``on_pooled`` every batch after it, with its pooled
        values by probe; they may not block and may not raise.
        """
        self._on_pooled = on_pooled
        self._settings = settings
        self._on_parsed = on_parsed
        self._models = models
        self._queue = queue
        self._accumulator = accumulator
        self._sender = sender
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._repeats = Repeats()
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
            parsed = [(item, inputs) for item in current if (inputs := self._parse(item, served)) is not None]
            for item, inputs in parsed:
                self._on_parsed(served, item, inputs)
            axes, fixed = served.instrumented.batch_axes, served.engine.batch_size
            lost = 0
            for inputs, arrived_ms in batches(parsed, axes, fixed or self._settings.max_batch):
                lost += self._run_batch(served, inputs, arrived_ms)
            self.meter.replayed += max(0, len(parsed) - lost)

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
            except ValueError as error:
                raise OipError("shape", str(error)) from error
        except OipError as error:
            self._metrics.rejected_total.labels(item.model, error.reason).inc()
            kind = (item.model, error.reason)
            self._repeats.warning(
                "request.rejected", kind, model=item.model, reason=error.reason, message=error.message
            )
            return None
        return request.inputs

    def _run_batch(self, served: Served, inputs: Tensors, arrived_ms: NDArray[np.int64]) -> int:
        """Replays a batch; returns how many of its requests the model refuses.

        A batch that fails is halved until the requests at fault are alone: their good neighbours lose nothing.
        """
        entry, requests, axes = served.entry, len(arrived_ms), served.instrumented.batch_axes
        fixed = served.engine.batch_size
        filled = inputs if fixed is None or requests == fixed else batching.fill(inputs, axes, fixed)
        begin = time.perf_counter()
        try:
            pooled = served.engine.run(filled)
        except EngineClosed:
            self._metrics.dropped_total.labels("model_gone").inc(requests)
            return requests
        except ReplayError as error:
            if requests > 1:
                half = requests // 2
                return sum(
                    self._run_batch(served, batching.cut(inputs, axes, start, stop), arrived_ms[start:stop])
                    for start, stop in ((0, half), (half, requests))
                )
            self._metrics.rejected_total.labels(entry.model, "replay_failed").inc()
            kind = (entry.model, entry.version)
            self._repeats.warning("replay.failed", kind, model=entry.model, version=entry.version, reason=str(error))
            return 1
        self._metrics.replay_seconds.observe(time.perf_counter() - begin)
        real = {
            name: replace(
                values,
                mean=values.mean[:requests],
                maximum=values.maximum[:requests],
                fraction=values.fraction[:requests],
            )
            for name, values in pooled.items()
        }
        self._on_pooled(served, inputs, real)
        self._accumulator.add(entry.model, entry.version, served.digest, served.instrumented.probes, real, arrived_ms)
        self._metrics.replayed_total.labels(entry.model, entry.version).inc(requests)
        return 0


def duty(turns: Iterable[tuple[float, float]], now: float) -> float:
    """The share of time that was busy since the first of some turns, each (its begin, its busy seconds)."""
    listed = list(turns)
    return sum(busy for _, busy in listed) / max(now - listed[0][0], 1e-9) if listed else 0.0


def batches(
    parsed: list[tuple[Captured, Tensors]], axes: batching.Axes, most: int
) -> Iterator[tuple[Tensors, NDArray[np.int64]]]:
    """Batches of at most ``most`` requests that can share a run, with each request's arrival (ms)."""
    alike: dict[Hashable, list[tuple[Captured, Tensors]]] = {}
    for item, inputs in parsed:
        alike.setdefault(batching.key(inputs, axes), []).append((item, inputs))
    for group in alike.values():
        inputs = batching.stack([tensors for _, tensors in group], axes)
        rows = [batching.count(tensors, axes) for _, tensors in group]
        arrived = np.repeat(np.array([item.arrived_ms for item, _ in group], np.int64), rows)
        for start in range(0, len(arrived), most):
            stop = min(start + most, len(arrived))
            yield batching.cut(inputs, axes, start, stop), arrived[start:stop]
