"""`reluscope detector`: builds the parts in one place, waits for what they need, stops them in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

import click
import structlog
from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.logging import Format, configure
from agent.options import SECTION, Kafka, options
from agent.supervise import Backoff, repeat, supervised
from detector import resources
from detector.alerting import runbooks
from detector.alerting.alertmanager import AlertmanagerError, AlertmanagerSettings
from detector.alerting.reconcile import reconcile
from detector.checks.every import run_all
from detector.domain.finding import Check
from detector.domain.settings import AgentLimits, CheckSettings, Database, PairedSettings
from detector.http import Backend, HttpServer, build_app
from detector.ingestion.ingest import IngestHandler
from detector.ingestion.shared_clock import SharedClock
from detector.ingestion.transport import Consumer, DeadLetters, Unreachable, reach
from detector.metrics import DetectorMetrics
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


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Settings:
    """Every option of `reluscope detector`, those of the sections among them; `agent.options` makes the options."""

    database: Database
    kafka: Kafka
    group: str = "reluscope-detector"
    """Consumer group, the same for all replicas."""
    host: str = "127.0.0.1"
    """Address for metrics, runbooks and the webhook."""
    port: int = Field(default=8500, ge=0, le=65535)
    """0 takes any free port."""
    retention_days: int = Field(default=30, ge=1, le=500_000)
    """How long windows are kept."""
    log_format: Format = "console"
    """json where a machine reads the log."""
    checks: CheckSettings
    paired: PairedSettings
    agents: AgentLimits
    alertmanager: AlertmanagerSettings


class Service:
    """One detector. HTTP answers from the first moment, and /readyz says what the rest waits for."""

    def __init__(self, settings: Settings, clock: Callable[[], datetime]) -> None:
        """Raises RunbookError, FileNotFoundError, StoreError or OSError (the port) where it can never start."""
        self._settings, self._clock = settings, clock
        self._runbooks = runbooks.load(resources.runbooks())
        self._versions: dict[str, int] = {}
        self._foretold: set[int] = set()
        names = [runbook.name for runbook in self._runbooks]
        self._metrics = DetectorMetrics(clock, settings.checks.active_seconds, names, settings.paired.lookback)
        self._store = Store(settings.database.url)
        self._alertmanager = settings.alertmanager.client()
        self._unreconciled = ""
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
        if self._alertmanager is not None:
            jobs += (Job("reconcile", RECONCILE_SECONDS, self._reconcile, first_after=RECONCILE_SECONDS),)
        schedule = Schedule(jobs, self._job_failed)
        kafka = self._settings.kafka
        halt = threading.Event()
        try:
            with closing(DeadLetters(kafka.bootstrap_servers, kafka.topic, kafka.api_version)) as letters:
                if self._wait("database", self._prepare_database, stop):
                    schedule.start()
                if self._wait("broker", lambda: reach(kafka.bootstrap_servers), stop):
                    # After an error nobody foresaw it begins again, from what Postgres says.
                    self._consumer = supervised(
                        "ingest",
                        lambda event: self._ingest(letters, event),
                        halt,
                        failed=self._metrics.ingest_errors.labels("unexpected").inc,
                        backoff=Backoff(FIRST_DELAY, LAST_DELAY),
                    )
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
        said = ""

        def missing(error: Exception, _seconds: float) -> None:
            nonlocal said
            self._missing = {part: str(error)}
            if str(error) != said:
                said = str(error)
                log.warning("service.waiting", part=part, error=said)

        if not repeat(attempt, stop, Backoff(FIRST_DELAY, LAST_DELAY), missing, on=(StoreError, Unreachable)):
            return False
        # Once ready it stays so: on-call must reach the runbooks while Postgres or Kafka is down.
        self._missing = {}
        return True

    def _prepare_database(self) -> None:
        self._store.ping()
        self._versions = runbooks.register(self._runbooks, self._store)

    def _ingest(self, letters: DeadLetters, stop: threading.Event) -> None:
        kafka = self._settings.kafka
        clock = SharedClock(self._store.now)
        handler = IngestHandler(self._store, kafka.topic, letters, self._metrics, clock, self._settings.agents)
        consumer = Consumer(
            kafka.bootstrap_servers, kafka.topic, self._settings.group, kafka.api_version, self._metrics, clock=clock
        )
        consumer.run(handler, stop)

    def _check(self) -> None:
        settings, done = self._settings, None
        try:
            done = run_all(self._store, settings.checks, self._store.now(), self._versions, settings.paired)
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
        if self._alertmanager is None:
            return
        settle, said = timedelta(seconds=self._settings.alertmanager.settle_seconds), ""
        try:
            reconcile(self._store, self._alertmanager, self._clock(), settle)
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


@click.command("detector", context_settings={"auto_envvar_prefix": "RELUSCOPE_DETECTOR"})
@options(Settings)
def command(settings: Settings) -> None:
    """Run the detector: ingest windows, check them, serve metrics and runbooks, keep alerts."""
    configure(settings.log_format)
    try:
        service = Service(settings, lambda: datetime.now(UTC))
    except OSError as error:
        listening = f"cannot listen on {settings.host}:{settings.port}: {error}"
        reason = str(error) if isinstance(error, FileNotFoundError) else listening
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
