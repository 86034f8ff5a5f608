"""The replay loop: sampled requests in, windows of summaries into the outbox."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from agent.intake.oip import Limits, OipError, parse_request
from agent.intake.queue import ByteQueue, Captured
from agent.metrics import AgentMetrics
from agent.models import Models, Served, be_nice
from agent.replay import ReplayError, stack
from agent.sender import Sender
from agent.windowing import Accumulator

log = structlog.get_logger()
_POLL_SECONDS = 0.25
_LONGEST_REST_SECONDS = 5.0

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What replay may take of the pod."""

    max_batch: int
    duty_cycle: float
    """Largest share of time spent in replay, 0 to 1."""
    limits: Limits


class Worker:
    """Replays what intake queued, within the duty cycle, and hands finished windows to the outbox."""

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

    def run(self, stop: threading.Event) -> None:
        """Replays until stopped, then hands over the windows that are still open."""
        be_nice()
        duty = self._settings.duty_cycle
        while not stop.is_set():
            begin = time.monotonic()
            items = self._queue.take(self._settings.max_batch, _POLL_SECONDS)
            taken = time.monotonic()
            self._replay(items)
            self._sender.windows(self._accumulator.close(self._clock_ms()))
            busy = time.monotonic() - taken
            rest = min(busy * (1 / duty - 1), _LONGEST_REST_SECONDS)
            if rest > 0:
                stop.wait(rest)
            self._metrics.duty_cycle.set(busy / max(time.monotonic() - begin, 1e-9))
        self._sender.windows(self._accumulator.drain())

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
            for inputs, arrived_ms in batches(parsed, served.replayer.batch_size, self._settings.max_batch):
                self._run_batch(served, inputs, arrived_ms)

    def _parse(self, item: Captured, served: Served) -> Tensors | None:
        try:
            request = parse_request(
                item.body,
                item.header_length,
                served.metadata.inputs,
                encoding=item.encoding,
                limits=self._settings.limits,
            )
            if len({len(value) for value in request.inputs.values()}) > 1:
                raise OipError("shape", "the inputs differ in their first extent, the number of requests")
        except OipError as error:
            self._metrics.rejected_total.labels(item.model, error.reason).inc()
            log.warning("request.rejected", model=item.model, reason=error.reason, message=error.message)
            return None
        return request.inputs

    def _run_batch(self, served: Served, inputs: Tensors, arrived_ms: NDArray[np.int64]) -> None:
        entry, requests = served.entry, len(arrived_ms)
        fixed = served.replayer.batch_size
        if fixed is not None and requests < fixed:
            inputs = {name: np.resize(value, (fixed, *value.shape[1:])) for name, value in inputs.items()}
        begin = time.perf_counter()
        try:
            pooled = served.replayer.run(inputs)
        except ReplayError as error:
            self._metrics.rejected_total.labels(entry.model, "replay_failed").inc(requests)
            log.warning("replay.failed", model=entry.model, version=entry.version, reason=str(error))
            return
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
        self._accumulator.add(entry.model, entry.version, served.digest, served.instrumented.probes, real, arrived_ms)
        self._metrics.replayed_total.labels(entry.model, entry.version).inc(requests)


def batches(
    parsed: list[tuple[Captured, Tensors]], fixed: int | None, most: int
) -> Iterator[tuple[Tensors, NDArray[np.int64]]]:
    """Batches of at most ``fixed or most`` rows, of equal trailing shapes, with each row's arrival (ms)."""
    by_shape: dict[tuple[tuple[str, tuple[int, ...]], ...], list[tuple[Captured, Tensors]]] = {}
    for item, inputs in parsed:
        by_shape.setdefault(tuple((name, value.shape[1:]) for name, value in inputs.items()), []).append((item, inputs))
    for group in by_shape.values():
        inputs = stack([tensors for _, tensors in group])
        rows = [len(next(iter(tensors.values()))) for _, tensors in group]
        arrived = np.repeat(np.array([item.arrived_ms for item, _ in group], np.int64), rows)
        size = fixed or most
        for start in range(0, len(arrived), size):
            yield {name: value[start : start + size] for name, value in inputs.items()}, arrived[start : start + size]
