"""`reluscope detector`: builds the parts in one place, waits for what they need, stops them in order."""

from __future__ import annotations

import random
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import structlog

from agent.logging import Format, configure
from detector import resources
from detector.alerting import reconcile, runbooks
from detector.alerting.alertmanager import Alertmanager, AlertmanagerError
from detector.checks import check
from detector.domain.finding import Check
from detector.http import Backend, HttpServer, build_app
from detector.ingestion.ingest import IngestHandler
from detector.ingestion.transport import ApiVersion, Consumer, DeadLetters
from detector.metrics import DetectorMetrics
from detector.paired import PairedSettings
from detector.planning.outlook import question_for
from detector.planning.plan import plan, sentence
from detector.schedule import Job, Schedule
from detector.store import Store, StoreError

log = structlog.get_logger()
METRICS_SECONDS = 5.0
MAINTENANCE_SECONDS = 3600.0
LONGEST_LOOK_SECONDS = 5.0
"""Between two looks for versions that are due: how late another detector takes over from one that was killed."""
RECONCILE_SECONDS = 30.0
DAYS_AHEAD = 3
STOP_SECONDS = 10.0
FIRST_DELAY, LAST_DELAY = 0.5, 15.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What `reluscope detector` is told."""

    database_url: str
    bootstrap_servers: str
    topic: str
    group: str
    host: str
    port: int
    retention_days: int
    api_version: ApiVersion
    checks: check.CheckSettings
    paired: PairedSettings
    alertmanager: Alertmanager | None = None
    """Asked about alerts that it sends no notices of; None for not at all."""
    alertmanager_settle: timedelta = timedelta(minutes=5)


class Missing(Exception):
    """Something outside does not answer yet."""


class Service:
    """One detector. HTTP answers from the first moment, and /readyz says what the rest waits for."""

    def __init__(self, settings: Settings, clock: Callable[[], datetime]) -> None:
        """Raises RunbookError, FileNotFoundError, StoreError or OSError (the port) where it can never start."""
        self._settings, self._clock = settings, clock
        self._runbooks = runbooks.load(resources.runbooks())
        self._versions: dict[str, int] = {}
        self._foretold: set[int] = set()
        self._unreconciled = ""
        names = [runbook.name for runbook in self._runbooks]
        self._metrics = DetectorMetrics(clock, settings.checks.active_seconds, names, settings.paired.lookback)
        self._store = Store(settings.database_url)
        self._missing = {"start": "not begun"}
        self._consumer: threading.Thread | None = None
        backend = Backend(
            store=self._store,
            metrics=self._metrics,
            runbooks={runbook.name: runbook for runbook in self._runbooks},
            clock=clock,
            alive=self._broken,
            missing=lambda: dict(self._missing),
        )
        self.http = HttpServer(build_app(backend), settings.host, settings.port)

    def run(self, stop: threading.Event) -> None:
        """Serves until ``stop`` is set; raises RunbookError where a registered runbook's text differs."""
        self.http.start()
        log.info("service.listening", host=self._settings.host, port=self.http.port)
        every = self._settings.checks.check_interval
        jobs: tuple[Job, ...] = (
            Job("maintain", MAINTENANCE_SECONDS, self._maintain),
            Job("check", min(every / 4, LONGEST_LOOK_SECONDS), self._check, first_after=every),
            Job("metrics", METRICS_SECONDS, self._refresh),
        )
        if self._settings.alertmanager is not None:
            jobs += (Job("reconcile", RECONCILE_SECONDS, self._reconcile, first_after=RECONCILE_SECONDS),)
        schedule = Schedule(jobs, self._job_failed)
        servers, topic, version = self._settings.bootstrap_servers, self._settings.topic, self._settings.api_version
        halt = threading.Event()
        try:
            with closing(DeadLetters(servers, topic, version)) as letters:
                if self._wait("database", self._prepare_database, stop):
                    schedule.start()
                if self._wait("broker", lambda: reach(servers), stop):
                    self._consumer = threading.Thread(
                        target=self._ingest, args=(letters, halt), name="ingest", daemon=True
                    )
                    self._consumer.start()
                    log.info("service.ready")
                stop.wait()
                log.info("service.stopping")
                halt.set()
                if self._consumer is not None:
                    self._consumer.join(STOP_SECONDS)
        finally:
            halt.set()
            schedule.stop()
            self.http.stop()
            self._store.close()
            log.info("service.stopped")

    def _wait(self, part: str, attempt: Callable[[], None], stop: threading.Event) -> bool:
        """Repeats ``attempt`` until it succeeds; False where ``stop`` came first. Says each reason once."""
        delay, said = FIRST_DELAY, ""
        while not stop.is_set():
            try:
                attempt()
            except (StoreError, Missing) as error:
                self._missing = {part: str(error)}
                if str(error) != said:
                    said = str(error)
                    log.warning("service.waiting", part=part, error=said)
                stop.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
                delay = min(delay * 2, LAST_DELAY)
            else:
                # Once ready it stays so: on-call must reach the runbooks while Postgres or Kafka is down.
                self._missing = {}
                return True
        return False

    def _prepare_database(self) -> None:
        self._store.ping()
        self._versions = runbooks.register(self._runbooks, self._store)

    def _ingest(self, letters: DeadLetters, stop: threading.Event) -> None:
        """Consumes; after an error nobody foresaw, again from what Postgres says."""
        s, delay = self._settings, FIRST_DELAY
        while not stop.is_set():
            try:
                handler = IngestHandler(self._store, s.topic, letters, self._metrics, self._clock)
                Consumer(s.bootstrap_servers, s.topic, s.group, s.api_version, self._metrics).run(handler, stop)
            except Exception:
                self._metrics.ingest_errors.labels("unexpected").inc()
                log.exception("ingest.failed", retry_seconds=delay)
                stop.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
                delay = min(delay * 2, LAST_DELAY)

    def _check(self) -> None:
        settings, done = self._settings, None
        try:
            done = check.run_all(self._store, settings.checks, self._store.now(), self._versions, settings.paired)
        finally:
            if done is None or done:  # else there was nothing due
                self._refresh()
        for one in done:
            self._say_outlook(one)

    def _say_outlook(self, done: Check) -> None:
        """Once per model version, as soon as its rate of requests is known."""
        if done.model_version_id in self._foretold:
            return
        question = question_for(self._store, done, self._settings.checks)
        if question is not None:
            self._foretold.add(done.model_version_id)
            log.info("service.outlook", model_version=done.model_version_id, plan=sentence(question, plan(question)))

    def _refresh(self) -> None:
        self._metrics.refresh(self._store, self._versions)

    def _maintain(self) -> None:
        self._store.maintain(self._clock(), self._settings.retention_days, DAYS_AHEAD)

    def _reconcile(self) -> None:
        source = self._settings.alertmanager
        if source is None:
            return
        try:
            reconcile.reconcile(self._store, source, self._clock(), self._settings.alertmanager_settle)
            said = ""
        except AlertmanagerError as error:
            said = str(error)
            if said != self._unreconciled:
                log.warning("alerts.unreconciled", error=said)
        self._unreconciled = said

    def _job_failed(self, job: str) -> None:
        if job == "check":
            self._metrics.check_errors.inc()

    def _broken(self) -> dict[str, str]:
        if self._consumer is not None and not self._consumer.is_alive():
            return {"ingest": "the thread has ended"}
        return {}


def reach(servers: str, timeout: float = 3.0) -> None:
    """Raises `Missing` unless one of ``servers`` (host:port, by commas) accepts a connection."""
    said = []
    for server in filter(None, (name.strip() for name in servers.split(","))):
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout).close()
            return
        except (OSError, ValueError, OverflowError) as error:
            said.append(f"{server}: {error}")
    raise Missing(f"no Kafka broker answers ({'; '.join(said) or 'none is named'})")


def _api_version(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    try:
        return None if value is None else tuple(int(part) for part in value.split("."))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no version such as 2.3") from None


_CHECK_HELP = {
    "false_page_days": "The alarm budget: at most one false page per model version in so many days.",
    "fdr": "Share of false channels among those that a finding lists.",
    "min_effect": "Cohen's omega up to which a shift does not matter.",
    "min_requests": "Requests that a check needs.",
    "lookback_windows": "Windows that may be joined to reach them.",
    "lookback_seconds": "Windows older than this are not used any more.",
    "reference_requests": "First requests of a deployment that become its reference.",
    "reference_windows": "Windows that this reference has at least: fewer do not tell how much requests hang together.",
    "min_active_rate": "Channels active more seldom in the reference are not called dead.",
    "grace_seconds": "How long after its end a window may still grow.",
    "check_interval": "Seconds between checks of a version, however many detectors there are.",
    "explosion_factor": "Growth over the reference's largest value that counts as an explosion.",
    "fleet_effect": "Standard deviations of the reference up to which one pod may differ from the others.",
    "fleet_requests": "Requests of a pod in a batch from which on it is compared with the others.",
    "active_seconds": "Activations of versions without a window for this long are neither checked nor alerted on.",
    "max_disagreement": "Share of requests whose top-1 class may differ from the reference model's.",
    "max_accuracy_drop": "Accuracy, as a share, that may be lost against the reference model on a holdout.",
    "min_sqnr_db": "Layers below this signal-to-noise ratio against the reference model lost their signal.",
    "min_compared": "Compared requests from which on a low SQNR at an output alone is a finding.",
    "max_mismatch": "Share of requests whose output may differ from the CPU's or the served one.",
    "paired_level": "Chance that the test of a holdout errs; that of other paired tests is the alarm budget's.",
    "paired_seconds": "Comparisons older than this are not looked at.",
    "holdout_seconds": "How long a holdout's result counts after agents said it last (--holdout-repeat-seconds).",
}


def _check_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per field of CheckSettings and PairedSettings, with its default."""
    for field in reversed(fields(check.CheckSettings) + fields(PairedSettings)):
        option = click.option(f"--{field.name.replace('_', '-')}", default=field.default, help=_CHECK_HELP[field.name])
        command = option(command)
    return command


@click.command("detector", context_settings={"auto_envvar_prefix": "RELUSCOPE_DETECTOR", "show_default": True})
@click.option("--database-url", envvar="RELUSCOPE_DATABASE_URL", required=True, help="postgresql+psycopg://...")
@click.option("--bootstrap-servers", required=True, help="Kafka, host:port[,host:port].")
@click.option("--topic", default="reluscope.windows", help="The topic that agents publish to.")
@click.option("--group", default="reluscope-detector", help="Consumer group, the same for all replicas.")
@click.option("--host", default="127.0.0.1", help="Address for metrics, runbooks and the webhook.")
@click.option("--port", default=8500, type=click.IntRange(0, 65535), help="0 takes any free port.")
@click.option("--retention-days", default=30, type=click.IntRange(1, 500_000), help="How long windows are kept.")
@click.option("--kafka-api-version", callback=_api_version, help="Such as 2.3; the broker is asked where not given.")
@click.option(
    "--alertmanager-url", help="Alertmanager's, to learn how alerts end that it holds back; without, unknown."
)
@click.option(
    "--alertmanager-authorization-file",
    type=click.Path(path_type=Path),
    help='Holds the Authorization header for it, such as "Bearer ...".',
)
@click.option(
    "--alertmanager-settle-seconds",
    default=300.0,
    type=click.FloatRange(min=0),
    help="How long after its own start it ends no alert: it may not have been told of them.",
)
@click.option("--log-format", default="console", type=click.Choice(["console", "json"]))
@_check_options
def command(
    database_url: str,
    bootstrap_servers: str,
    topic: str,
    group: str,
    host: str,
    port: int,
    retention_days: int,
    kafka_api_version: ApiVersion,
    alertmanager_url: str | None,
    alertmanager_authorization_file: Path | None,
    alertmanager_settle_seconds: float,
    log_format: Format,
    **checks: Any,
) -> None:
    """Run the detector: ingest windows, check them, serve metrics and runbooks, keep alerts."""
    configure(log_format)
    paired = {field.name: checks.pop(field.name) for field in fields(PairedSettings)}
    try:
        settings = Settings(
            database_url, bootstrap_servers, topic, group, host, port, retention_days,
            kafka_api_version, check.CheckSettings(**checks), PairedSettings(**paired),
            Alertmanager(alertmanager_url, alertmanager_authorization_file) if alertmanager_url else None,
            timedelta(seconds=alertmanager_settle_seconds),
        )  # fmt: skip
        service = Service(settings, lambda: datetime.now(UTC))
    except OSError as error:
        reason = str(error) if isinstance(error, FileNotFoundError) else f"cannot listen on {host}:{port}: {error}"
        raise click.ClickException(reason) from error
    except (ValueError, StoreError) as error:
        raise click.ClickException(str(error)) from error
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        service.run(stop)
    except runbooks.RunbookError as error:
        raise click.ClickException(str(error)) from error
