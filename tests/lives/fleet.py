"""A fleet, a broker and a detector in one process, under a clock that the test turns.

The detector is the real one: handler, cuts, store on a real Postgres, checks and metrics; only the broker is a list.
What Prometheus would scrape is kept, and promtool evaluates the shipped rules on it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
from prometheus_client.parser import text_string_to_metric_families

from agent import wire
from deploy.local.postgres import psycopg_url
from detector.checks.every import run_all
from detector.domain.settings import CheckSettings
from detector.domain.types import ModelVersion
from detector.ingestion.cuts import Cuts
from detector.ingestion.ingest import IngestHandler
from detector.ingestion.records import Headers, Record
from detector.metrics import DetectorMetrics
from detector.store import Store
from tests.lives.pods import Pod

RULES = Path(__file__).parents[2] / "deploy/prometheus/reluscope.rules.yml"
BEGIN = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PARTITIONS = 4
SETTINGS = CheckSettings(
    reference_requests=200, reference_windows=3, min_requests=60, fleet_requests=20, lookback_windows=6
)
_ALERTS = 'sum by (alertname, gap, version) (count_over_time(ALERTS{alertstate="firing"}[30d])) * 0 + 1'


class NoLetters:
    """A message that cannot be used is an error of the simulation."""

    def publish(self, raw: bytes | None, headers: Headers, key: bytes | None = None) -> None:
        raise AssertionError(f"a message was set aside: {dict(headers)['dead-letter-error']!r}")


@dataclass
class Account:
    """What became of a version's requests."""

    stored: int
    checked: int
    passed_over: int
    late: int
    reference: int
    waiting: int
    """In windows that no batch has reached yet."""

    @property
    def adds_up(self) -> bool:
        return self.stored == self.checked + self.passed_over + self.late + self.reference + self.waiting


@dataclass
class Fleet:
    """Turn the clock with `run`."""

    url: str
    step: timedelta = MINUTE
    seed: int = 1
    settings: CheckSettings = SETTINGS
    now: datetime = BEGIN
    pods: list[Pod] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    """Requests in windows of pods that are gone, by version."""
    findings: list[str] = field(default_factory=list)
    broker_up: bool = True
    detector_up: bool = True
    records_per_step: int | None = None
    """How many records of a partition the detector reads in a step; all where None."""

    def __post_init__(self) -> None:
        self.store = Store(self.url)
        self.rng = np.random.default_rng(self.seed)
        self.log: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        self.cuts = Cuts()
        self.metrics = DetectorMetrics(lambda: self.now, self.settings.active_seconds)
        self.handler = IngestHandler(self.store, "t", NoLetters(), self.metrics, lambda: self.now)
        self.offsets: dict[int, int] = {}
        self.series: dict[str, dict[int, float]] = {}
        self.steps = 0

    # The fleet

    def start(self, *names: str, version: str = "1", **fields: object) -> list[Pod]:
        """Deploys pods."""
        made = [Pod(name, version, self.step, **fields) for name in names]  # type: ignore[arg-type]
        for pod in made:
            pod.deploy(self.now)
        self.pods += made
        return made

    def end(self, *names: str, farewell: bool = True) -> None:
        """Takes pods away, by SIGTERM or without a word."""
        for pod in [pod for pod in self.pods if pod.name in names]:
            if farewell:
                pod.stop(self.now)
                self._publish(pod)
            self.sent[pod.version] = self.sent.get(pod.version, 0) + pod.sent - _held(pod)
            self.pods.remove(pod)

    def run(self, steps: int, requests: int = 20) -> None:
        """So many steps in which every pod samples so many requests."""
        for _ in range(steps):
            self.now += self.step
            for pod in self.pods:
                pod.serve(self.now, requests, self.rng)
            # Windows reach the broker a moment after their end, and the detector another one later.
            self.now += timedelta(seconds=2)
            if self.broker_up:
                if self.detector_up:
                    self._ingest()  # finds nothing new, and knows by that when the following came
                for pod in self.pods:
                    self._publish(pod)
            self.now += timedelta(seconds=1)
            if self.detector_up:
                self._detect()
            self.now -= timedelta(seconds=3)
            self._scrape()

    def restart_detector(self) -> None:
        """Another process takes over, with nothing but Postgres."""
        self.handler = IngestHandler(self.store, "t", NoLetters(), self.metrics, lambda: self.now)
        self.offsets, self.cuts = {}, Cuts()

    def close(self) -> None:
        self.store.close()

    def _publish(self, pod: Pod) -> None:
        for message in pod.deliver(self.now):
            self.log[int(wire.decode(message).version) % PARTITIONS].append(message)

    # The detector

    def _detect(self) -> None:
        if self.broker_up:
            self._ingest(self.records_per_step)
        # Checks run a little later, as they do: a window's grace has passed.
        self.now += timedelta(seconds=15)
        for check in run_all(self.store, self.settings, self.now, {}):
            self.findings += [f"{self.now:%d %H:%M} {one.summary}" for one in check.findings]
        self.metrics.refresh(self.store, {"ReluscopeDeadNeurons": 1})
        self.now -= timedelta(seconds=15)

    def _ingest(self, most: int | None = 0) -> None:
        """Reads so many records of each partition."""
        if not self.offsets:
            assigned = self.handler.assigned(range(PARTITIONS))
            self.offsets = {number: offset or 0 for number, offset in assigned.items()}
        ends = dict(enumerate(map(len, self.log)))
        self.cuts.begin(self.now, {number: ends[number] for number in self.cuts.lacking(ends)})
        for number, begin in list(self.offsets.items()):
            if values := self.log[number][begin:][:most]:
                self.handler.handle(number, [Record(begin + i, None, value) for i, value in enumerate(values)])
                self.offsets[number] = begin + len(values)
        self.handler.reached(self.cuts.reached(self.offsets))

    # What is looked at

    def _scrape(self) -> None:
        """As Prometheus would, with times counted from the beginning."""
        if self.detector_up:
            for one in text_string_to_metric_families(self.metrics.render().decode()):
                for sample in one.samples:
                    if one.name.endswith("_created") or not one.name.startswith("reluscope_"):
                        continue
                    labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
                    shift = BEGIN.timestamp() if one.name.endswith("_timestamp_seconds") and sample.value else 0.0
                    self.series.setdefault(f"{sample.name}{{{labels}}}", {})[self.steps] = sample.value - shift
        self.steps += 1

    def value(self, name: str, **labels: str) -> float | None:
        """Of a metric, as scraped last."""
        return self.metrics.registry.get_sample_value(name, labels)

    def state(self, version: str) -> str:
        """The state of a version, as exported."""
        states = ("observed", "idle", "blind", "no_agent", "stopped", "superseded")
        about = {"model": "digits", "version": version}
        return next(s for s in states if self.value("reluscope_version_state", **about, state=s) == 1)

    def alerts(self, promtool: str, directory: Path, expected: Iterable[dict[str, str]] = ()) -> None:
        """Asserts by the shipped rules which alerts fired at any time of this life, and no others."""
        inputs = [
            {"series": series, "values": " ".join(_text(values.get(i)) for i in range(self.steps))}
            for series, values in self.series.items()
        ]
        seconds = int(self.step.total_seconds())
        samples = [
            {"labels": "{" + ", ".join(f'{k}="{v}"' for k, v in one.items()) + "}", "value": 1} for one in expected
        ]
        wanted = {"expr": _ALERTS, "eval_time": f"{seconds * (self.steps - 1)}s", "exp_samples": samples}
        test = {"interval": f"{seconds}s", "input_series": inputs, "promql_expr_test": [wanted]}
        file = directory / "life.test.yml"
        file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
        done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def version(self, name: str) -> ModelVersion:
        found = self.store.model_version("digits", name)
        assert found is not None
        return found

    def account(self, name: str) -> Account:
        """Of a version, by what is stored."""
        version = self.version(name)
        spans = self.store.spans(version.id, BEGIN - timedelta(days=30), self.now + timedelta(days=30))
        [seen] = [one for one in self.store.progress() if one.version == name]
        reference, state = self.store.reference(version.id), self.store.alarm_state(version.id)
        own = reference is not None and reference.source_version_id == version.id
        used = state.last.end if state else reference.end if own and reference else BEGIN - timedelta(days=30)
        return Account(
            stored=sum(span.n for span in spans),
            checked=seen.checked,
            passed_over=seen.passed_over,
            late=seen.late,
            reference=reference.n if own and reference else 0,
            waiting=sum(span.n for span in spans if span.start >= used),
        )

    def delivered(self, name: str) -> int:
        """Requests in the windows that pods of a version gave to the broker, by the pods' own count."""
        return self.sent.get(name, 0) + sum(pod.sent - _held(pod) for pod in self.pods if pod.version == name)

    def rows(self, table: str) -> int:
        with psycopg.connect(psycopg_url(self.url)) as connection:
            row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert row is not None
        return int(row[0])


def _held(pod: Pod) -> int:
    """Requests that wait in a pod's outbox."""
    bodies = [wire.decode(payload).body for payload in pod.outbox]
    return sum(body.probes[0].summary.n for body in bodies if isinstance(body, wire.Window))


def _text(value: float | None) -> str:
    return "_" if value is None else f"{value:.6f}".rstrip("0").rstrip(".") or "0"
