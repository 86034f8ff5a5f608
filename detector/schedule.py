"""The detector's clockwork: checks and housekeeping at fixed intervals, in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Job:
    """Work that is due every ``seconds``; a run that is still going when the next is due takes that one's place."""

    name: str
    seconds: float
    work: Callable[[], None]
    first_after: float = 0.0
    """Seconds from the start to the first run."""


class Schedule:
    """Runs jobs until stopped. A job that fails is counted, logged and tried again when it is next due."""

    def __init__(self, jobs: Sequence[Job], on_error: Callable[[str], None]) -> None:
        """``on_error`` is told the name of a job that failed; raises ValueError where an interval is not positive."""
        for job in jobs:
            if not job.seconds > 0:
                raise ValueError(f"the interval of job {job.name} must be positive: {job.seconds}")
        self._jobs = tuple(jobs)
        self._on_error = on_error
        self._scheduler = BackgroundScheduler(
            timezone=UTC, executors={"default": ThreadPoolExecutor(max(1, len(self._jobs)))}, daemon=True
        )

    def start(self) -> None:
        """Begins to run the jobs; returns at once."""
        begin = datetime.now(UTC)
        for job in self._jobs:
            self._scheduler.add_job(
                self._guarded,
                "interval",
                args=(job,),
                id=job.name,
                seconds=job.seconds,
                next_run_time=begin + timedelta(seconds=job.first_after),
                max_instances=1,
                coalesce=True,
                misfire_grace_time=None,
            )
        self._scheduler.start()

    def stop(self, wait: bool = True) -> None:
        """Starts no further run; with ``wait``, returns when the running ones are done."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=wait)

    def run(self, stop: threading.Event) -> None:
        """Runs the jobs until ``stop`` is set."""
        self.start()
        try:
            stop.wait()
        finally:
            self.stop()

    def _guarded(self, job: Job) -> None:
        try:
            job.work()
        except Exception as error:
            log.error("schedule.job_failed", job=job.name, error=str(error), exc_info=True)
            self._on_error(job.name)
