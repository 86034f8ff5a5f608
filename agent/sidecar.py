"""The sidecar: builds its parts in one place, runs their loops, stops them in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import structlog

from agent.budget.duty import DutyLimits
from agent.budget.owner import Budget, BudgetLimits
from agent.budget.shares import ModelKey
from agent.capture.settings import CaptureSettings
from agent.delivery.drops import ProbeDrops
from agent.delivery.heartbeats import Heartbeats, Rhythm
from agent.delivery.outbox import Outbox, Watch
from agent.delivery.sender import Sender
from agent.delivery.transport import Publisher
from agent.delivery.windowing import Accumulator
from agent.intake import http, server
from agent.intake.connections import ConnectionLimits, Connections
from agent.intake.queue import ByteQueue, Captured
from agent.intake.unpacking import Limits
from agent.metrics import AgentMetrics
from agent.paired.holdouts import Holdouts
from agent.paired.kinships import Kinships
from agent.paired.runner import Paired
from agent.paired.windows import ComparisonWindows
from agent.rates.governor import Governors
from agent.rates.pairs import Pairs
from agent.rates.samplers import Samplers
from agent.rates.sampling import Sampler
from agent.rates.throttle import Throttle
from agent.replay import resolve
from agent.serving.following import Following
from agent.serving.models import Models, Served
from agent.serving.server import Server, ServerWatch
from agent.serving.settings import FollowingSettings
from agent.serving.worker import Worker, WorkerSettings
from agent.settings import AgentSettings
from agent.supervise import join, supervised

log = structlog.get_logger()
_STOP_SECONDS = 20.0
"""For all threads together: an orchestrator kills the pod after 30."""
_PUBLISH_SECONDS = 5.0
"""Of these, kept for what the broker still takes."""
_REFRESH_SECONDS = 2.0


class Sidecar:
    """One agent: its parts, and the loops that they run in."""

    def __init__(self, settings: AgentSettings, stop: threading.Event) -> None:
        """``stop`` ends `run`. Raises NoRoom, OutboxError, ReplayError or OSError where it can never start."""
        self._settings = settings
        self._stop = stop
        self._metrics = AgentMetrics()
        self._limits = Limits(max_body_bytes=settings.max_body_bytes)
        self._queue: ByteQueue[Captured] = ByteQueue(settings.queue_bytes, settings.queue_items, self._pushed_out)
        budget = _budget(settings, self._limits, self._metrics)
        self._duty = budget.duty
        self._capture = _capture(settings, budget)
        self._outbox = self._open_outbox()
        self._drops = ProbeDrops(self._metrics)
        # Rows are counted, and so many of a group may be one request's.
        group = replace(settings.group, requests=settings.group.requests * settings.rows_per_request)
        self._sender = Sender(
            self._outbox, settings.agent_id, settings.max_message_bytes,
            on_drop=self._drops, group=group, metrics=self._metrics,
        )  # fmt: skip
        self._window_ms = int(settings.window_seconds * 1000)
        self._grace_ms = int(settings.window_grace_seconds * 1000)
        self._build_comparing()
        self._build_serving()
        self._build_replay()
        self._build_publishing()

    def _pushed_out(self, item: Captured) -> None:
        self._metrics.dropped(item.key, "queue_share")
        self._metrics.overflowed_total.labels(*item.key).inc()

    def _open_outbox(self) -> Outbox:
        settings, metrics = self._settings, self._metrics
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        path = settings.state_dir / "outbox.db"
        watch = Watch(
            metrics.outbox_dropped_total.inc, metrics.outbox_errors_total.inc, metrics.outbox_damaged_total.inc
        )
        outbox = Outbox(path, settings.outbox_bytes, keep_damaged=settings.outbox_damaged, watch=watch)
        metrics.watch_queue(self._queue.depth)
        metrics.watch_outbox(outbox.depth)
        return outbox

    def _build_comparing(self) -> None:
        settings, capture = self._settings, self._capture
        sender, metrics, duty = self._sender, self._metrics, self._duty
        bounds = replace(
            settings.paired, max_batch=capture.max_batch, limits=self._limits, device=capture.device, nice=capture.nice
        )
        windows = ComparisonWindows(self._window_ms, self._grace_ms)
        self._pairs = Paired(bounds, settings.sample_rate, windows, sender, metrics, duty=duty)
        self._holdouts = Holdouts(bounds, sender, metrics, self._stop, duty=duty)
        self._kinships = Kinships(bounds, sender, metrics, duty=duty)
        ids = Pairs(bounds.join_seconds, bounds.join_ids, metrics.paired_dropped_total.labels("join_ids").inc)
        self._samplers = Samplers(settings.sample_rate, lambda rate: Sampler(rate, ids))

    def _build_serving(self) -> None:
        asked = self._settings.following
        self._watch = watch = _server_watch(asked, self._metrics, lambda: self._models.known())
        following = Following(
            self._settings.repository,
            asked.max_versions,
            dict(asked.versions),
            lambda: None if watch is None else watch.answer,
        )
        self._models = Models(
            self._settings.repository,
            self._metrics,
            self._sender.deployment,
            self._capture,
            on_refreshed=self._refreshed,
            following=following,
            duty=self._duty,
        )

    def _build_replay(self) -> None:
        settings, capture = self._settings, self._capture
        self._worker = Worker(
            WorkerSettings(capture.max_batch, settings.budgets, self._limits, capture.nice, settings.rows_per_request),
            self._models,
            self._queue,
            Accumulator(self._window_ms, self._grace_ms, on_drop=self._drops),
            self._sender,
            self._metrics,
            on_parsed=self._pairs.intake.offer,
            on_pooled=self._kinships.offer,
            duty=self._duty,
        )
        governors = Governors(settings.sample_rate, settings.budgets)
        self._throttle = Throttle(
            governors, self._samplers, self._queue, self._worker.meters, self._duty, self._metrics
        )

    def _build_publishing(self) -> None:
        settings, metrics = self._settings, self._metrics
        self._publisher = Publisher(
            settings.kafka.bootstrap_servers,
            settings.kafka.topic,
            settings.compression,
            settings.kafka.api_version,
            settings.in_flight_bytes,
            metrics,
            agent_id=settings.agent_id,
        )
        self._heartbeats = Heartbeats(
            settings.agent_id,
            self._outbox.boot_epoch,
            Rhythm(int(settings.heartbeat_seconds * 1000), self._window_ms, settings.sample_rate),
            self._models.standing,
            lambda model, version: metrics.tally(model, version).read(),
            self._outbox.oldest,
        )

    def _refreshed(self, served: Mapping[ModelKey, Served]) -> None:
        self._pairs.refresh(served)
        self._kinships.refresh(served)
        self._holdouts.offer(served)
        for each in (self._samplers, self._queue, self._worker.meters):
            each.keep(served.keys())

    def _watch_models(self, stop: threading.Event) -> None:
        if self._watch is not None:
            self._watch.wait(self._settings.following.server_timeout_seconds + 1)
        self._models.watch(_REFRESH_SECONDS, stop)

    def run(self) -> None:
        """Serves until it is stopped, then hands over what is there; raises OSError where it cannot listen."""
        settings, stop = self._settings, self._stop
        work_stop, publish_stop = threading.Event(), threading.Event()
        loops = [
            supervised("models", self._watch_models, stop),
            supervised("replay", self._worker.run, work_stop),
            supervised("throttle", self._throttle.run, stop),
            supervised("paired", self._pairs.run, work_stop),
            supervised("kinship", self._kinships.run, work_stop),
            supervised("holdouts", self._holdouts.run, stop),
        ]
        if self._watch is not None:
            loops.append(supervised("server", self._watch.run, stop))
        publishing = supervised(
            "publisher", lambda event: self._publisher.run(self._outbox, event, self._heartbeats), publish_stop
        )
        app = http.build_app(
            self._models, self._queue, self._samplers, self._metrics, self._limits,
            on_response=self._pairs.intake.offer_response,
        )  # fmt: skip
        connections = Connections(
            ConnectionLimits(settings.max_connections),
            lambda reason: self._metrics.connections_closed_total.labels(reason).inc(),
        )
        log.info(
            "agent.started",
            agent_id=settings.agent_id,
            boot_epoch=self._outbox.boot_epoch,
            repository=str(settings.repository),
        )
        try:
            server.serve(app, settings.host, settings.port, stop, connections=connections)
        finally:
            # In order: no new requests, then the open windows into the outbox, then what the broker still takes, and
            # the farewell.
            stop.set()
            self._queue.close()
            work_stop.set()
            deadline = time.monotonic() + _STOP_SECONDS
            join(loops, deadline - _PUBLISH_SECONDS)
            self._heartbeats.leave()
            publish_stop.set()
            join([publishing], deadline)
            self._outbox.close()
            log.info("agent.stopped", outbox_messages=self._outbox.depth()[0])


def _capture(settings: AgentSettings, budget: Budget) -> CaptureSettings:
    """How models are observed, on a device that is there; raises ReplayError where it is not."""
    device = replace(settings.capture.device, memory=budget.sessions)
    if device.provider == "tensorrt":
        device = replace(device, engine_cache=settings.state_dir / "tensorrt")
    resolve(device.provider)
    return replace(settings.capture, device=device)


def _budget(settings: AgentSettings, limits: Limits, metrics: AgentMetrics) -> Budget:
    """The owner of time and memory; raises NoRoom where the queues alone are more than there is."""
    asked, paired = settings.budget, settings.paired
    duty = DutyLimits(settings.budgets.duty_cycle, asked.background_share, paired.duty_cycle)
    budget = Budget(BudgetLimits(duty, asked.gpu_memory, asked.memory), metrics)
    replay = settings.queue_bytes + limits.max_receiving_bytes
    kinship = paired.queue_bytes if paired.kinship_requests else 0
    budget.ram.lease("queues", replay + paired.queue_bytes + kinship + paired.join_bytes + paired.fetch_bytes)
    return budget


def _server_watch(
    settings: FollowingSettings, metrics: AgentMetrics, models: Callable[[], Collection[str]]
) -> ServerWatch | None:
    if settings.server_url is None:
        return None
    server = Server(settings.server_url, settings.server_timeout_seconds)
    return ServerWatch(server, metrics, models, settings.server_poll_seconds)
