"""Chooses the requests that are compared, joins them with their responses, and keeps them until their turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import structlog

from agent.budget.shares import FairShares, ModelKey
from agent.intake.queue import ByteQueue, Captured
from agent.metrics import AgentMetrics
from agent.paired.responses import Joiner
from agent.paired.settings import PairedSettings
from agent.rates.trickle import Trickle
from agent.replay.batching import Tensors
from agent.replay.rows import Drawn, draw
from agent.serving.models import Served

log = structlog.get_logger()
_OVERHEAD = 512
"""Bytes that a waiting item takes besides its arrays."""


@dataclass(frozen=True, slots=True)
class Task:
    """A request to be compared; with a response, against that."""

    served: Served
    drawn: Drawn
    """Its one row that is compared."""
    arrived_ms: int
    response: Captured | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it holds while it waits."""
        response = len(self.response.body) if self.response is not None else 0
        return sum(value.nbytes for value in self.drawn.inputs.values()) + response + _OVERHEAD


class PairedIntake:
    """The way in of paired replay. Its methods are called by other loops: they only note and queue, and never wait."""

    def __init__(
        self,
        settings: PairedSettings,
        sample_rate: float,
        metrics: AgentMetrics,
        has_baseline: Callable[[Served], bool],
        monotonic: Callable[[], float] = time.monotonic,
        rng: np.random.Generator | None = None,
    ) -> None:
        """``sample_rate`` is the agent's; ``has_baseline`` says whether a model is compared with another one."""
        self._metrics = metrics
        self._has_baseline = has_baseline
        self._rng = rng or np.random.default_rng()
        self._trickle = Trickle(sample_rate, settings.rate, settings.per_minute, monotonic)
        # A minute's worth of items at most: what waits longer is stale.
        self._queue: ByteQueue[Task] = ByteQueue(
            settings.queue_bytes, settings.per_minute, lambda task: self.drop("queue_share")
        )
        self._shares = FairShares()
        self._held = 0
        self._joiner: Joiner[Task, Captured] = Joiner(settings.join_bytes, settings.join_seconds, self.drop, monotonic)
        metrics.paired_queue_bytes.set_function(lambda: float(self._queue.depth()[1]))
        metrics.paired_join_bytes.set_function(lambda: float(self._joiner.depth()[1]))

    def offer(self, served: Served, item: Captured, inputs: Tensors) -> None:
        """Sees every request that is replayed; queues those of the trickle."""
        try:
            if not self._trickle.keep(item.draw):
                return
            drawn = draw(inputs, served.instrumented.batch_axes, served.engine.batch_size, 1, self._rng)
            task = Task(served, drawn, item.arrived_ms)
            if self._has_baseline(served):
                self._enqueue(task)
            if item.pair is not None:
                joined = self._joiner.request(item.pair, task, task.nbytes)
                if joined is not None:
                    self._enqueue(replace(joined[0], response=joined[1]))
        except Exception:  # nothing that goes wrong here may cost a request its replay
            log.exception("paired.offer_failed", model=item.model)
            self._metrics.paired_failed_total.labels(item.model, "", "internal").inc()

    def offer_response(self, response: Captured) -> None:
        """Sees the responses to sampled requests; joins those to requests of the trickle. Called on the event loop."""
        try:
            if response.pair is None or not self._trickle.keep(response.draw):
                return
            joined = self._joiner.response(response.pair, response, len(response.body) + _OVERHEAD)
            if joined is not None:
                self._enqueue(replace(joined[0], response=response))
        except Exception:  # nor may it cost the server an answer
            log.exception("paired.offer_failed", model=response.model)
            self._metrics.paired_failed_total.labels(response.model, "served_response", "internal").inc()

    def take(self, timeout: float) -> Task | None:
        """A task of the model version that has used least time; waits for one up to ``timeout`` seconds."""
        self.expire()
        taken = self._queue.take_turn(self._shares.choose, lambda key, others: 1, timeout)
        if taken is None:
            return None
        _, (task,), nbytes = taken
        self._held = nbytes
        return task

    def done(self, key: ModelKey, seconds: float) -> None:
        """The task that was taken last took so long; its memory counts no longer."""
        self._queue.release(self._held)
        self._held = 0
        self._shares.charge(key, seconds)

    def expire(self) -> None:
        """Drops what has waited for its other half for too long."""
        self._joiner.expire()

    def close(self) -> None:
        """Takes no more."""
        self._queue.close()

    def drop(self, reason: str) -> None:
        """Counts a request or a response that is not compared."""
        self._metrics.paired_dropped_total.labels(reason).inc()

    def _enqueue(self, task: Task) -> None:
        key = task.served.entry.key
        if not self._trickle.take(1, key):
            self.drop("rate")
        elif not self._queue.offer(task, task.nbytes, key):
            self.drop("queue_full")
