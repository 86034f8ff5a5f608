"""The replay loop: sampled requests in, windows of summaries into the outbox."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.budget.duty import Duty, DutyLimits
from agent.budget.shares import FairShares, ModelKey
from agent.capture.engine import EngineClosed
from agent.delivery.sender import Sender
from agent.delivery.windowing import Accumulator
from agent.intake.oip import Limits, OipError, parse_request
from agent.intake.queue import ByteQueue, Captured
from agent.metrics import AgentMetrics
from agent.rates.governor import Budgets
from agent.rates.throttle import Meters
from agent.repeats import Repeats
from agent.replay import NoMemory, ReplayError, batching
from agent.replay.batching import Tensors
from agent.serving.models import Models, Served, be_nice

_POLL_SECONDS = 0.25
_TURN_SECONDS = 0.5
"""Of a version's turn where there are several: a slow model's runs are cut into smaller ones."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What replay may take of the pod."""

    max_batch: int
    budgets: Budgets
    limits: Limits
    nice: int = 10
    """Nice level of the thread."""


class Worker:
    """Replays what intake queued, within the budgets, and hands finished windows to the outbox.

    Model versions take turns, the one that has used least time first.
    """

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
        duty: Duty | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_parsed`` sees every request before it is replayed; it may not block and may not raise.

        ``duty`` is the agent's; where there is none, replay keeps the duty cycle of the settings by itself.
        """
        self._settings = settings
        self._on_parsed = on_parsed
        self._models = models
        self._queue = queue
        self._accumulator = accumulator
        self._sender = sender
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._duty = duty or Duty(DutyLimits(settings.budgets.duty_cycle), monotonic)
        self._monotonic = monotonic
        self._shares = FairShares()
        self._not_before = monotonic()
        self._repeats = Repeats()
        self.meters = Meters()

    def run(self, stop: threading.Event) -> None:
        """Replays until stopped, then hands over the windows that are still open."""
        be_nice(self._settings.nice)
        while not stop.is_set():
            rest = self.turn(_POLL_SECONDS)
            if rest > 0:
                stop.wait(min(rest, _POLL_SECONDS))
        self._sender.windows(self._accumulator.drain())

    def turn(self, timeout: float) -> float:
        """Replays one version's turn, if it may now and some come within ``timeout`` seconds.

        Sends the windows that are due, always. Returns the seconds to rest before the next turn.
        """
        self._close_windows()
        rest = max(self._not_before - self._monotonic(), self._duty.delay("replay"))
        if rest > 0:
            return rest
        taken = self._queue.take_turn(self._shares.choose, self._most, timeout)
        if taken is not None:
            key, items, nbytes = taken
            begin = self._monotonic()
            try:
                self._replay(key, items)
            finally:
                self._queue.release(nbytes)
                self._account(key, len(items), begin)
        self._close_windows()
        return 0.0

    def _account(self, key: ModelKey, requests: int, begin: float) -> None:
        busy = self._monotonic() - begin
        self._duty.charge("replay", key, busy)
        self._shares.charge(key, busy)
        meter = self.meters.of(key)
        meter.taken += requests
        meter.busy_seconds += busy
        limit = self._settings.budgets.requests_per_second
        if limit is not None:
            self._not_before = begin + requests / limit

    def _most(self, key: ModelKey, others_wait: bool) -> int:
        """How many requests a turn takes."""
        most, limit = self._settings.max_batch, self._settings.budgets.requests_per_second
        if limit is not None:
            # A second's worth at most, so that a low limit means small batches and not long pauses.
            most = max(1, min(most, int(limit)))
        meter = self.meters.read(key)
        # Others that do not wait now may come while it runs. Of what is not known yet, one.
        if others_wait or self._models.several:
            most = min(most, int(_TURN_SECONDS * meter.taken / max(meter.busy_seconds, 1e-9)))
        return max(1, most)

    def _close_windows(self) -> None:
        self._sender.windows(self._accumulator.close(self._clock_ms()))

    def _replay(self, key: ModelKey, items: list[Captured]) -> None:
        served = self._models.served(*key)
        if served is None:  # replaced or removed while its requests waited
            self._metrics.dropped_total.labels("model_gone").inc(len(items))
            return
        parsed = [(item, inputs) for item in items if (inputs := self._parse(item, served)) is not None]
        for item, inputs in parsed:
            self._on_parsed(served, item, inputs)
        axes, fixed = served.instrumented.batch_axes, served.engine.batch_size
        lost = 0
        for inputs, arrived_ms in batches(parsed, axes, fixed or self._settings.max_batch):
            lost += self._run_batch(served, inputs, arrived_ms)
        self.meters.of(key).replayed += max(0, len(parsed) - lost)

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
        except NoMemory as error:  # of sessions, so that smaller batches would not help
            self._metrics.dropped_total.labels("no_memory").inc(requests)
            self._repeats.warning("replay.no_memory", entry.key, model=entry.model, reason=str(error))
            return requests
        except ReplayError as error:
            if requests > 1:
                half = requests // 2
                return sum(
                    self._run_batch(served, batching.cut(inputs, axes, start, stop), arrived_ms[start:stop])
                    for start, stop in ((0, half), (half, requests))
                )
            self._metrics.rejected_total.labels(entry.model, "replay_failed").inc()
            self._repeats.warning(
                "replay.failed", entry.key, model=entry.model, version=entry.version, reason=str(error)
            )
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
        self._accumulator.add(entry.model, entry.version, served.digest, served.instrumented.probes, real, arrived_ms)
        self._metrics.replayed_total.labels(entry.model, entry.version).inc(requests)
        return 0


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
