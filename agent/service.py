"""`reluscope agent`: the sidecar. Builds the parts in one place, runs their loops, stops them in order."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import structlog

from agent.capture.options import budgets, capture_options, capture_settings
from agent.delivery.outbox import Outbox, OutboxError
from agent.delivery.sender import Sender
from agent.delivery.transport import Publisher
from agent.delivery.windowing import Accumulator
from agent.intake import http, server
from agent.intake.oip import Limits
from agent.intake.queue import ByteQueue, Captured
from agent.logging import Format, configure
from agent.metrics import AgentMetrics
from agent.options import Finite
from agent.paired.holdouts import Holdouts
from agent.paired.kinships import Kinships
from agent.paired.options import paired_options
from agent.paired.runner import Paired
from agent.paired.settings import PairedSettings
from agent.paired.windows import ComparisonWindows
from agent.rates.governor import Governor
from agent.rates.sampling import Sampler
from agent.rates.throttle import Throttle
from agent.replay import ReplayError, resolve
from agent.serving.models import Models, Served
from agent.serving.worker import Worker, WorkerSettings
from agent.supervise import join, supervised

log = structlog.get_logger()
_STOP_SECONDS = 20.0
"""For all threads together: an orchestrator kills the pod after 30."""
_PUBLISH_SECONDS = 5.0
"""Of these, kept for what the broker still takes."""
_REFRESH_SECONDS = 2.0
_MIB = 1 << 20


def _agent_id() -> str:
    return socket.gethostname()


def api_version(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """A Kafka protocol version as kafka-python wants it; raises click.BadParameter where it is no version."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split("."))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no version such as 2.3") from None


@click.command("agent", context_settings={"auto_envvar_prefix": "RELUSCOPE_AGENT", "show_default": True})
@click.option(
    "--repository", type=click.Path(path_type=Path), required=True, help="<model>/<version>/model.onnx below."
)
@click.option("--bootstrap-servers", required=True, help="Kafka, host:port[,host:port].")
@click.option("--topic", default="reluscope.windows", help="Kafka topic for windows and deployments.")
@click.option(
    "--state-dir", type=click.Path(path_type=Path), required=True, help="Folder for the outbox; survives restarts."
)
@click.option("--host", default="127.0.0.1", help="Address for mirrored requests and /metrics.")
@click.option("--port", default=8400, type=click.IntRange(0, 65535), help="0 takes any free port.")
@click.option("--agent-id", default=_agent_id, show_default="host name", help="Name of this pod in every window.")
@click.option("--sample-rate", default=0.05, type=Finite(0, 1), help="Share of requests that is replayed.")
@capture_options
@click.option("--window-seconds", default=60.0, type=Finite(0.1), help="Length of a window.")
@click.option(
    "--window-grace-seconds",
    default=1.0,
    type=Finite(0),
    help="How long a window waits for its last requests.",
)
@click.option("--queue-mib", default=64, type=click.IntRange(1), help="Memory for requests that wait for replay.")
@click.option("--queue-items", default=4096, type=click.IntRange(1), help="Requests that may wait for replay.")
@click.option("--max-body-mib", default=16, type=click.IntRange(1), help="Largest request body.")
@click.option(
    "--outbox-mib", default=512, type=click.IntRange(1), help="Disk for messages that Kafka has not acknowledged."
)
@click.option("--max-message-kib", default=896, type=click.IntRange(16), help="Larger windows are split by probe.")
@click.option("--compression", default="gzip", type=click.Choice(["gzip", "zstd", "none"]), help="Of Kafka messages.")
@click.option("--kafka-api-version", callback=api_version, help="Such as 2.3; the broker is asked where not given.")
@click.option("--in-flight-mib", default=32, type=click.IntRange(1), help="Memory for messages on their way to Kafka.")
@paired_options
@click.option("--log-format", default="console", type=click.Choice(["console", "json"]))
def command(
    repository: Path,
    bootstrap_servers: str,
    topic: str,
    state_dir: Path,
    host: str,
    port: int,
    agent_id: str,
    sample_rate: float,
    window_seconds: float,
    window_grace_seconds: float,
    queue_mib: int,
    queue_items: int,
    max_body_mib: int,
    outbox_mib: int,
    max_message_kib: int,
    compression: str,
    kafka_api_version: tuple[int, ...] | None,
    in_flight_mib: int,
    log_format: Format,
    paired: PairedSettings,
    **capture: Any,
) -> None:
    """Run the sidecar: sample mirrored requests, replay them, stream activation statistics to Kafka."""
    configure(log_format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    metrics = AgentMetrics()
    limits = Limits(max_body_bytes=max_body_mib * _MIB)
    queue: ByteQueue[Captured] = ByteQueue(queue_mib * _MIB, queue_items)
    settings = capture_settings(capture, state_dir)
    try:
        resolve(settings.device.provider)
        state_dir.mkdir(parents=True, exist_ok=True)
        outbox = Outbox(state_dir / "outbox.db", outbox_mib * _MIB, on_drop=metrics.outbox_dropped_total.inc)
    except (OutboxError, ReplayError, OSError) as error:
        raise click.ClickException(str(error)) from error
    metrics.watch_queue(queue.depth)
    metrics.watch_outbox(outbox.depth)

    sender = Sender(outbox, agent_id, max_message_kib * 1024)
    window_ms, grace_ms = int(window_seconds * 1000), int(window_grace_seconds * 1000)
    bounds = replace(paired, max_batch=settings.max_batch, limits=limits, device=settings.device, nice=settings.nice)
    pairs = Paired(bounds, sample_rate, ComparisonWindows(window_ms, grace_ms), sender, metrics)
    holdouts = Holdouts(bounds, sender, metrics, stop)
    kinships = Kinships(bounds, sender, metrics)

    def refreshed(served: Mapping[str, Served]) -> None:
        pairs.refresh(served)
        kinships.refresh(served)
        holdouts.refresh(served)

    models = Models(repository, metrics, sender.deployment, settings, on_refreshed=refreshed)
    accumulator = Accumulator(window_ms, grace_ms)
    allowed = budgets(capture)
    worker_settings = WorkerSettings(settings.max_batch, allowed, limits, settings.nice)
    worker = Worker(
        worker_settings, models, queue, accumulator, sender, metrics,
        on_parsed=pairs.intake.offer, on_pooled=kinships.offer,
    )  # fmt: skip
    sampler = Sampler(sample_rate)
    throttle = Throttle(Governor(sample_rate, allowed), sampler, queue, worker.meter, metrics)
    publisher = Publisher(
        bootstrap_servers,
        topic,
        compression,
        kafka_api_version,
        in_flight_mib * _MIB,
        metrics,
        agent_id=agent_id,
    )
    work_stop, publish_stop = threading.Event(), threading.Event()
    loops = [
        supervised("models", lambda event: models.watch(_REFRESH_SECONDS, event), stop),
        supervised("replay", worker.run, work_stop),
        supervised("throttle", throttle.run, stop),
        supervised("paired", pairs.run, work_stop),
        supervised("kinship", kinships.run, work_stop),
    ]
    publishing = supervised("publisher", lambda event: publisher.run(outbox, event), publish_stop)
    app = http.build_app(models, queue, sampler, metrics, limits, on_response=pairs.intake.offer_response)
    log.info("agent.started", agent_id=agent_id, boot_epoch=outbox.boot_epoch, repository=str(repository))
    try:
        server.serve(app, host, port, stop)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error}") from error
    finally:
        # In order: no new requests, then the open windows into the outbox, then what the broker still takes.
        stop.set()
        queue.close()
        work_stop.set()
        deadline = time.monotonic() + _STOP_SECONDS
        join(loops, deadline - _PUBLISH_SECONDS)
        publish_stop.set()
        join([publishing], deadline)
        outbox.close()
        log.info("agent.stopped", outbox_messages=outbox.depth()[0])
