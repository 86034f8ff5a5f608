"""`reluscope agent`: the sidecar. Builds the parts in one place, runs their loops, stops them in order."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import click
import structlog

from agent.budget.duty import DutyLimits
from agent.budget.memory import NoRoom
from agent.budget.owner import Budget, BudgetLimits
from agent.budget.shares import ModelKey
from agent.delivery.drops import ProbeDrops
from agent.delivery.heartbeats import Heartbeats, Rhythm
from agent.delivery.outbox import Outbox, OutboxError
from agent.delivery.sender import Sender
from agent.delivery.transport import Publisher
from agent.delivery.windowing import Accumulator
from agent.intake import http, server
from agent.intake.connections import ConnectionLimits, Connections
from agent.intake.oip import Limits
from agent.intake.queue import ByteQueue, Captured
from agent.logging import configure
from agent.metrics import AgentMetrics
from agent.options import options
from agent.paired.holdouts import Holdouts
from agent.paired.kinships import Kinships
from agent.paired.runner import Paired
from agent.paired.windows import ComparisonWindows
from agent.rates.governor import Governors
from agent.rates.pairs import Pairs
from agent.rates.samplers import Samplers
from agent.rates.sampling import Sampler
from agent.rates.throttle import Throttle
from agent.replay import ReplayError, resolve
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


@click.command("agent", context_settings={"auto_envvar_prefix": "RELUSCOPE_AGENT"})
@options(AgentSettings)
def command(settings: AgentSettings) -> None:
    """Run the sidecar: sample mirrored requests, replay them, stream activation statistics to Kafka."""
    configure(settings.log_format, exception_texts=False)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    metrics = AgentMetrics()
    limits = Limits(max_body_bytes=settings.max_body_bytes)

    def pushed_out(item: Captured) -> None:
        metrics.dropped_total.labels("queue_share").inc()
        metrics.overflowed_total.labels(*item.key).inc()
        metrics.tally(*item.key).count("dropped")

    queue: ByteQueue[Captured] = ByteQueue(settings.queue_bytes, settings.queue_items, pushed_out)
    capture, state_dir, sample_rate = settings.capture, settings.state_dir, settings.sample_rate
    if capture.device.provider == "tensorrt":
        capture = replace(capture, device=replace(capture.device, engine_cache=state_dir / "tensorrt"))
    try:
        budget = _budget(settings, limits, metrics)
        capture = replace(capture, device=replace(capture.device, memory=budget.sessions))
        resolve(capture.device.provider)
        state_dir.mkdir(parents=True, exist_ok=True)
        outbox = Outbox(state_dir / "outbox.db", settings.outbox_bytes, on_drop=metrics.outbox_dropped_total.inc)
    except (NoRoom, OutboxError, ReplayError, OSError) as error:
        raise click.ClickException(str(error)) from error
    metrics.watch_queue(queue.depth)
    metrics.watch_outbox(outbox.depth)

    drops = ProbeDrops(metrics)
    # Rows are counted, and so many of a group may be one request's.
    group = replace(settings.group, requests=settings.group.requests * settings.rows_per_request)
    sender = Sender(outbox, settings.agent_id, settings.max_message_bytes, on_drop=drops, group=group, metrics=metrics)
    window_ms, grace_ms = int(settings.window_seconds * 1000), int(settings.window_grace_seconds * 1000)
    bounds = replace(
        settings.paired, max_batch=capture.max_batch, limits=limits, device=capture.device, nice=capture.nice
    )
    duty = budget.duty
    pairs = Paired(bounds, sample_rate, ComparisonWindows(window_ms, grace_ms), sender, metrics, duty=duty)
    holdouts = Holdouts(bounds, sender, metrics, stop, duty=duty)
    kinships = Kinships(bounds, sender, metrics, duty=duty)
    ids = Pairs(bounds.join_seconds, bounds.join_ids, metrics.paired_dropped_total.labels("join_ids").inc)
    samplers = Samplers(sample_rate, lambda rate: Sampler(rate, ids))

    def refreshed(served: Mapping[ModelKey, Served]) -> None:
        pairs.refresh(served)
        kinships.refresh(served)
        holdouts.offer(served)
        for each in (samplers, queue, worker.meters):
            each.keep(served.keys())

    watch = _server_watch(settings.following, metrics, lambda: models.known())
    following = Following(
        settings.repository,
        settings.following.max_versions,
        dict(settings.following.versions),
        lambda: None if watch is None else watch.answer,
    )
    models = Models(
        settings.repository,
        metrics,
        sender.deployment,
        capture,
        on_refreshed=refreshed,
        following=following,
        duty=duty,
    )
    accumulator = Accumulator(window_ms, grace_ms, on_drop=drops)
    worker_settings = WorkerSettings(
        capture.max_batch, settings.budgets, limits, capture.nice, settings.rows_per_request
    )
    worker = Worker(
        worker_settings, models, queue, accumulator, sender, metrics,
        on_parsed=pairs.intake.offer, on_pooled=kinships.offer, duty=duty,
    )  # fmt: skip
    governors = Governors(sample_rate, settings.budgets)
    throttle = Throttle(governors, samplers, queue, worker.meters, duty, metrics)
    publisher = Publisher(
        settings.kafka.bootstrap_servers,
        settings.kafka.topic,
        settings.compression,
        settings.kafka.api_version,
        settings.in_flight_bytes,
        metrics,
        agent_id=settings.agent_id,
    )
    heartbeats = Heartbeats(
        settings.agent_id,
        outbox.boot_epoch,
        Rhythm(int(settings.heartbeat_seconds * 1000), window_ms, sample_rate),
        models.standing,
        lambda model, version: metrics.tally(model, version).read(),
        outbox.oldest,
    )

    def watch_models(event: threading.Event) -> None:
        if watch is not None:
            watch.wait(settings.following.server_timeout_seconds + 1)
        models.watch(_REFRESH_SECONDS, event)

    work_stop, publish_stop = threading.Event(), threading.Event()
    loops = [
        supervised("models", watch_models, stop),
        supervised("replay", worker.run, work_stop),
        supervised("throttle", throttle.run, stop),
        supervised("paired", pairs.run, work_stop),
        supervised("kinship", kinships.run, work_stop),
        supervised("holdouts", holdouts.run, stop),
    ]
    if watch is not None:
        loops.append(supervised("server", watch.run, stop))
    publishing = supervised("publisher", lambda event: publisher.run(outbox, event, heartbeats), publish_stop)
    app = http.build_app(models, queue, samplers, metrics, limits, on_response=pairs.intake.offer_response)
    connections = Connections(
        ConnectionLimits(settings.max_connections),
        lambda reason: metrics.connections_closed_total.labels(reason).inc(),
    )
    repository = str(settings.repository)
    log.info("agent.started", agent_id=settings.agent_id, boot_epoch=outbox.boot_epoch, repository=repository)
    try:
        server.serve(app, settings.host, settings.port, stop, connections=connections)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    finally:
        # In order: no new requests, then the open windows into the outbox, then what the broker still takes, and the
        # farewell.
        stop.set()
        queue.close()
        work_stop.set()
        deadline = time.monotonic() + _STOP_SECONDS
        join(loops, deadline - _PUBLISH_SECONDS)
        heartbeats.leave()
        publish_stop.set()
        join([publishing], deadline)
        outbox.close()
        log.info("agent.stopped", outbox_messages=outbox.depth()[0])


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
