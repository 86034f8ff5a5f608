"""After a deployment: a few requests run on the version that was replaced too, to tell whether the new one is near it.

The served side costs nothing, for its pooled values are those that replay made. The former version runs on the CPU, is
loaded when its first request is there, and given up when it has had its share.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import structlog

from agent import wire
from agent.budget.duty import Duty, DutyLimits
from agent.budget.shares import ModelKey
from agent.clock import unix_ms
from agent.delivery.sender import Sender
from agent.instrument import InstrumentError, instrument
from agent.instrument.pooled import Pooled
from agent.intake.queue import ByteQueue
from agent.metrics import AgentMetrics
from agent.paired.baselines import Baseline, former_of
from agent.paired.errors import PairedError
from agent.paired.kinship_sums import KinshipSums, Means, sampled
from agent.paired.opening import open_bounded
from agent.paired.settings import PairedSettings
from agent.replay import NoMemory, Replayer, ReplayError, batching, output_types
from agent.replay.rows import Batch
from agent.serving.models import Served, be_nice
from agent.serving.repository import digest

log = structlog.get_logger()
_MOST_GROUPS = 16
"""Of probes that take turns: with more, each is compared on fewer requests."""
_MOST_BATCHES = 64
_POLL_SECONDS = 0.25
_IDLE_SECONDS = 60.0
"""Without a request for so long, the former version's memory is given back."""


@dataclass(slots=True)
class _Target:
    """One deployment."""

    served: Served
    former: Baseline
    wanted: int
    """Requests that may still be queued."""
    sums: KinshipSums
    failed: bool = False
    refused: bool = False
    """Whether it has been said that there was no memory."""


@dataclass(frozen=True, slots=True)
class _Offered:
    target: _Target
    rows: Batch
    means: Means
    """Of the rows that count."""

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for values in (self.rows.inputs, self.means) for one in values.values())


@dataclass(frozen=True, slots=True)
class _Former:
    """A former version's session, and of which deployment."""

    target: _Target
    replayer: Replayer
    axes: batching.Axes
    digest: str


class Kinships:
    """`refresh` belongs to the loop that watches the repository, `offer` to the one that replays, work is in `run`."""

    def __init__(
        self,
        settings: PairedSettings,
        sender: Sender,
        metrics: AgentMetrics,
        clock_ms: Callable[[], int] = unix_ms,
        duty: Duty | None = None,
    ) -> None:
        """The arguments are as for `agent.paired.runner.Paired`."""
        self._settings = settings
        self._sender = sender
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._duty = duty or Duty(DutyLimits(settings.duty_cycle))
        self._targets: dict[ModelKey, _Target | None] = {}
        self._seen: dict[ModelKey, Served] = {}
        self._queue: ByteQueue[_Offered] = ByteQueue(settings.queue_bytes, _MOST_BATCHES)
        self._former: _Former | None = None

    def refresh(self, served: Mapping[ModelKey, Served]) -> None:
        """Looks for versions that were deployed since the last look. Called after each look at the repository."""
        if not self._settings.kinship_requests:
            return
        targets: dict[ModelKey, _Target | None] = {}
        for key, item in served.items():
            if self._seen.get(key) is item:
                targets[key] = self._targets.get(key)
                continue
            try:
                former = former_of(item.entry)
            except OSError as error:  # the version's folder is being removed
                log.warning("kinship.repository_unreadable", model=key[0], version=key[1], reason=str(error))
                continue
            wanted = self._settings.kinship_requests * min(item.engine.groups, _MOST_GROUPS)
            targets[key] = None if former is None else _Target(item, former, wanted, KinshipSums(self._sender.least))
        self._targets, self._seen = targets, {key: item for key, item in served.items() if key in targets}

    def offer(self, served: Served, rows: Batch, pooled: Mapping[str, Pooled]) -> None:
        """Sees every batch that was replayed; queues the first ones of a deployment. Never waits, never raises."""
        target = self._targets.get(served.entry.key)
        if target is None or target.served is not served or target.wanted <= 0:
            return
        try:
            names = {probe.name for probe in served.instrumented.probes if probe.kind == "activation"}
            means = {name: sampled(values.mean) for name, values in pooled.items() if name in names}
            batch = _Offered(target, rows, means)
            if means and self._queue.offer(batch, batch.nbytes):
                target.wanted -= len(rows.kept)
        except Exception:  # nothing that goes wrong here may cost a request its replay
            target.wanted = 0
            log.exception("kinship.offer_failed", model=served.entry.model)

    def run(self, stop: threading.Event) -> None:
        """Compares until stopped, within the agent's duty cycle. Sums of too few requests are not sent."""
        be_nice(self._settings.nice)
        idle_since = time.monotonic()
        while not stop.is_set():
            if (seconds := self._duty.delay("kinship")) > 0:
                stop.wait(seconds)
                continue
            offered = next(iter(self._queue.take(1, _POLL_SECONDS)), None)
            if offered is not None:
                begin = time.monotonic()
                self._process(offered)
                idle_since = time.monotonic()
                self._duty.charge("kinship", offered.target.served.entry.key, idle_since - begin)
            elif time.monotonic() - idle_since > _IDLE_SECONDS:
                self._former = None
        self._queue.close()
        self._former = None

    def _process(self, batch: _Offered) -> None:
        target, entry = batch.target, batch.target.served.entry
        if target.failed or self._targets.get(entry.key) is not target:
            return
        try:
            former = self._loaded(target)
            target.sums.add(batch.means, _means(former, batch.rows))
        except NoMemory as error:  # the next request may find room
            if not target.refused:
                log.info("kinship.no_memory", model=entry.model, version=entry.version, reason=str(error))
            target.refused, self._former = True, None
            target.wanted += len(batch.rows.kept)
            return
        except Exception as error:  # of any kind: there is no second try, and no request depends on it
            known = isinstance(error, (InstrumentError, PairedError, ReplayError, OSError))
            target.failed, target.wanted, self._former = True, 0, None
            log.warning(
                "kinship.unusable", model=entry.model, version=entry.version, former=target.former.label,
                reason=str(error) if known else type(error).__name__, exc_info=not known,
            )  # fmt: skip
            return
        self._metrics.kinship_requests_total.labels(entry.model, entry.version).inc(len(batch.rows.kept))
        if layers := target.sums.take():
            body = wire.Kinship(self._clock_ms(), target.former.label, former.digest, layers)
            self._sender.kinship(entry.model, entry.version, target.served.digest, body)
        if target.wanted <= 0 and not self._queue.depth()[0]:
            self._former = None
            log.info("kinship.measured", model=entry.model, version=entry.version, former=target.former.label)

    def _loaded(self, target: _Target) -> _Former:
        """The former version's session at the layers that both have.

        Raises PairedError, InstrumentError, ReplayError or OSError.
        """
        if self._former is not None and self._former.target is target:
            return self._former
        self._former = None  # first, so that no two are in memory
        opened = open_bounded(target.former.path, self._settings.model_bytes)
        whole = instrument(opened, output_types)
        ours = {probe.name for probe in target.served.instrumented.probes if probe.kind == "activation"}
        shared = [probe.name for probe in whole.probes if probe.kind == "activation" and probe.name in ours]
        if not shared:
            raise ReplayError(f"{target.former.path} has no layer of a name that the served version has")
        checksum = digest(target.former.path, opened.external_files)
        replayer = Replayer.on(self._settings.device.owned("kinship").on_cpu(), whole.subset(shared))
        self._former = _Former(target, replayer, whole.batch_axes, checksum)
        return self._former


def _means(former: _Former, rows: Batch) -> Means:
    """The former version's pooled means of the rows that count; raises ReplayError where it cannot run them."""
    replayer, inputs = former.replayer, rows.inputs
    requests = batching.count(inputs, former.axes)
    step = replayer.batch_size or requests
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, requests, step):
        part = batching.cut(inputs, former.axes, start, min(start + step, requests))
        real = batching.count(part, former.axes)
        pooled = replayer.run(batching.fill(part, former.axes, step) if real < step else part)
        for name, values in pooled.items():
            found.setdefault(name, []).append(sampled(values.mean[:real]))
    return {name: np.concatenate(parts)[rows.kept] for name, parts in found.items()}
