"""The replay loop: sampled requests in, windows of summaries into the outbox."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.budget.duty import Duty, DutyLimits
from agent.budget.shares import FairShares, ModelKey
from agent.capture.engine import EngineClosed
from agent.clock import unix_ms
from agent.delivery.sender import Sender
from agent.delivery.versions import Version
from agent.delivery.windowing import Accumulator
from agent.instrument.pooled import Pooled
from agent.intake.queue import ByteQueue, Captured
from agent.intake.tensors import OipError
from agent.intake.unpacking import Limits
from agent.metrics import AgentMetrics
from agent.rates.governor import Budgets
from agent.rates.throttle import Meters
from agent.repeats import Repeats
from agent.replay import NoMemory, ReplayError
from agent.replay.batching import Tensors
from agent.replay.rows import Batch, Drawn, batches, draw, halves
from agent.serving.models import Models, Served, be_nice
from agent.serving.parsing import inputs_of

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
    rows_per_request: int = 1
    """Rows of a request, drawn at random, that are replayed; each counts as a request."""


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
        clock_ms: Callable[[], int] = unix_ms,
        on_parsed: Callable[[Served, Captured, Tensors], None] = lambda served, item, inputs: None,
        on_pooled: Callable[[Served, Batch, Mapping[str, Pooled]], None] = lambda served, batch, pooled: None,
        duty: Duty | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        rng: np.random.Generator | None = None,
    ) -> None:
        """``on_parsed`` sees every request before it is replayed, ``on_pooled`` every batch after it, with the pooled
        values of the rows that count, by probe; they may not block and may not raise.

        ``duty`` is the agent's; where there is none, replay keeps the duty cycle of the settings by itself.
        """
        self._settings = settings
        self._on_parsed = on_parsed
        self._on_pooled = on_pooled
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
        self._rng = rng or np.random.default_rng()
        self.meters = Meters()

    def run(self, stop: threading.Event) -> None:
        """Replays until stopped, then hands over the windows that are still open."""
        be_nice(self._settings.nice)
        while not stop.is_set():
            rest = self.turn(_POLL_SECONDS)
            if rest > 0:
                stop.wait(min(rest, _POLL_SECONDS))
        self._sender.windows(self._accumulator.drain())
        self._sender.withhold_windows("stopping", lambda version: True)

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
        self._sender.withhold_windows("version_gone", self._is_gone)

    def _is_gone(self, version: Version) -> bool:
        """Whether no request of a model version can come any more, and none waits in an open window."""
        served = self._models.served(*version[:2])
        serves = served is not None and served.digest == version[2]
        return not serves and not self._accumulator.holds(*version)

    def _replay(self, key: ModelKey, items: list[Captured]) -> None:
        served = self._models.served(*key)
        if served is None:  # replaced or removed while its requests waited
            self._metrics.dropped(key, "model_gone", len(items))
            return
        self._replay_version(served, items)

    def _replay_version(self, served: Served, items: list[Captured]) -> None:
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
        self.meters.of(served.entry.key).replayed += len(parsed) - (round(len(parsed) * lost / rows) if rows else 0)

    def _broken(self, served: Served, rows: int, error: Exception) -> int:
        """Counts and logs what nobody foresaw; an error's text may quote values, so only its type is told."""
        self._metrics.dropped(served.entry.key, "internal", rows)
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
            return inputs_of(item, served, self._settings.limits)
        except OipError as error:
            self._metrics.rejected(item.key, error.reason)
            self._repeats.warning(
                "request.rejected",
                (item.model, error.reason),
                model=item.model,
                reason=error.reason,
                message=error.message,
            )
            return None

    def _run_batch(self, served: Served, batch: Batch) -> int:
        """Replays a batch; returns how many of its rows are lost.

        A batch that fails is halved until the rows at fault are alone: their good neighbours lose nothing.
        """
        entry, requests = served.entry, len(batch.kept)
        begin = time.perf_counter()
        try:
            pooled = served.engine.run(batch.inputs)
        except EngineClosed:
            self._metrics.dropped(entry.key, "model_gone", requests)
            return requests
        except NoMemory as error:  # of sessions, so that smaller batches would not help
            self._metrics.dropped(entry.key, "no_memory", requests)
            self._repeats.warning("replay.no_memory", entry.key, model=entry.model, reason=str(error))
            return requests
        except ReplayError as error:
            if requests > 1 and not batch.whole:
                return sum(self._run_batch(served, half) for half in halves(batch, served.instrumented.batch_axes))
            self._metrics.rejected(entry.key, "replay_failed")
            self._repeats.warning(
                "replay.failed", entry.key, model=entry.model, version=entry.version, reason=str(error)
            )
            return requests
        self._metrics.replay_seconds.observe(time.perf_counter() - begin)
        kept = batch.kept
        counted = {
            name: Pooled(values.mean[kept], values.maximum[kept], values.fraction[kept])
            for name, values in pooled.items()
        }
        probes = served.instrumented.probes
        self._on_pooled(served, batch, counted)
        self._accumulator.add(entry.model, entry.version, served.digest, probes, counted, batch.arrived_ms)
        self._metrics.replayed(entry.key, requests)
        return 0
