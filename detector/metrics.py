"""What the detector exports to Prometheus.

Two kinds. Counters tell what this process did. Everything on models, windows, checks and findings comes from a
`Snapshot` of the store: replicas and restarted processes export the same, and a scrape never waits for Postgres.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from detector.dead import LABELS
from detector.finding import Agreement, Check
from detector.store.types import ModelVersion, StoredCheck

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GAP_DAYS = 7
"""A deployed version that has been silent for longer is taken to be decommissioned."""


class SnapshotStore(Protocol):
    """The part of the store that a snapshot is read from."""

    def versions(self, since: datetime) -> list[ModelVersion]: ...
    def compared_versions(self, since: datetime) -> list[tuple[ModelVersion, datetime]]: ...
    def latest_checks(self, since: datetime) -> list[StoredCheck]: ...
    def current_versions(self) -> list[ModelVersion]: ...


@dataclass(frozen=True, slots=True)
class Watched:
    """A model version with recent windows or comparisons, and its latest check if there is one."""

    model: str
    version: str
    until: datetime
    """When it is no longer watched, unless windows or comparisons arrive."""
    first_seen: datetime
    check: Check | None

    @property
    def last_check(self) -> datetime:
        """Before the first check: when the version was first seen, so that a check that never comes is missed too."""
        return self.check.finished_at if self.check else self.first_seen


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the exported gauges are made from; keys are (model, version)."""

    watched: dict[tuple[str, str], Watched]
    last_window: dict[tuple[str, str], datetime]
    """Of every deployed version: the end of its newest window, or its deployment where that is later."""
    runbooks: dict[str, int]

    @classmethod
    def read(
        cls, store: SnapshotStore, now: datetime, stale: timedelta, paired: timedelta, runbooks: dict[str, int]
    ) -> Snapshot:
        """Reads the store as of ``now``; a version is watched for ``stale`` after its windows, ``paired`` after its
        comparisons."""
        checks = {stored.check.model_version_id: stored.check for stored in store.latest_checks(since=now - stale)}
        watched: dict[tuple[str, str], Watched] = {}
        serving = store.current_versions()
        # A version's name may have been used again for another file: the one that lives longest speaks for it.
        windows = store.versions(since=now - stale)
        live = {v.id: (v.last_window_end + stale, v) for v in windows if v.last_window_end is not None}
        for version, end in store.compared_versions(since=now - paired):
            live.setdefault(version.id, (end + paired, version))
        for until, version in sorted(live.values(), key=lambda pair: (pair[0], pair[1].id)):
            if version.superseded(serving):
                continue  # its findings have ended with it
            key = (version.model, version.version)
            watched[key] = Watched(*key, until, version.first_seen, checks.get(version.id))
        last_window: dict[tuple[str, str], datetime] = {}
        for version in serving:
            times = [t for t in (version.last_window_end, version.deployed_at, version.first_seen) if t is not None]
            newest, key = max(times), (version.model, version.version)
            if now - newest <= timedelta(days=GAP_DAYS):
                last_window[key] = max(newest, last_window.get(key, newest))
        return cls(watched, last_window, dict(runbooks))


class _SnapshotCollector(Collector):
    """Exports the newest snapshot; stale versions are left out at the time of the scrape, not of the snapshot."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.snapshot: Snapshot | None = None
        self._clock = clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        snapshot = self.snapshot or Snapshot({}, {}, {})
        now = self._clock()
        yield from _check_metrics([w for w in snapshot.watched.values() if now <= w.until])
        yield _family(
            "reluscope_last_window_timestamp_seconds",
            "End of the newest window of a deployed version, or its deployment before the first one.",
            ("model", "version"),
            ((key, at.timestamp()) for key, at in snapshot.last_window.items()),
        )
        yield _family(
            "reluscope_runbook_info",
            "Runbooks this detector serves.",
            ("name", "version"),
            (((name, str(version)), 1.0) for name, version in snapshot.runbooks.items()),
        )


class DetectorMetrics:
    """The detector's registry; counters are attributes, for whoever does the counted work."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        stale_seconds: float,
        alertnames: Collection[str] = (),
        paired: timedelta = timedelta(hours=3),
    ) -> None:
        """Versions are exported for ``stale_seconds`` after their windows and ``paired`` after their comparisons."""
        self.registry = registry = CollectorRegistry()
        self.stale = timedelta(seconds=stale_seconds)
        self._paired = paired
        self._clock, self._alertnames = clock, frozenset(alertnames)
        self.ingested = Counter("reluscope_ingested_messages_total", "Messages applied to Postgres.", registry=registry)
        self.duplicates = Counter(
            "reluscope_duplicate_messages_total", "Messages that were known already.", registry=registry
        )
        self.dead_letters = Counter(
            "reluscope_dead_letter_messages_total", "Messages set aside as unusable.", ["reason"], registry=registry
        )
        self.ingest_errors = Counter(
            "reluscope_ingest_errors_total",
            "Failed attempts to ingest; they are retried.",
            ["reason"],
            registry=registry,
        )
        self.last_ingest = Gauge(
            "reluscope_last_ingest_timestamp_seconds", "When this process last committed a batch.", registry=registry
        )
        self.check_errors = Counter(
            "reluscope_check_errors_total", "Rounds of checks that raised an error.", registry=registry
        )
        self.alerts_received = Counter(
            "reluscope_alerts_received_total",
            "Alerts taken from Alertmanager's webhook.",
            ["alertname", "status"],
            registry=registry,
        )
        for name in sorted(self._alertnames):
            for status in ("firing", "resolved"):
                self.alerts_received.labels(name, status)
        self._collector = _SnapshotCollector(clock)
        registry.register(self._collector)

    def ingest_applied(self, applied: int, duplicates: int) -> None:
        """Counts one committed batch."""
        self.ingested.inc(applied)
        self.duplicates.inc(duplicates)
        self.last_ingest.set(self._clock().timestamp())

    def alert_received(self, alertname: str, status: str) -> None:
        """Counts an alert; names that no runbook carries share one series, as anyone may post anything."""
        self.alerts_received.labels(alertname if alertname in self._alertnames else "other", status).inc()

    def publish(self, snapshot: Snapshot) -> None:
        """Makes ``snapshot`` what the next scrape sees."""
        self._collector.snapshot = snapshot

    def refresh(self, store: SnapshotStore, runbooks: dict[str, int]) -> None:
        """Reads the store and publishes what it says; store errors are the caller's."""
        self.publish(Snapshot.read(store, self._clock(), self.stale, self._paired, runbooks))

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)


def _check_metrics(live: Collection[Watched]) -> Iterator[GaugeMetricFamily]:
    model, layer = ("model", "version"), ("model", "version", "layer")
    finding = (*layer, "test", "cause")
    checked = [(watched, watched.check) for watched in live if watched.check is not None]
    found = [((w.model, w.version, f.layer, f.test, f.cause), f) for w, check in checked for f in check.findings]
    yield _family(
        "reluscope_finding_channels",
        "Channels that the latest check reports, by layer, test and cause.",
        finding,
        ((key, float(len(f.channels))) for key, f in found),
    )
    yield _family(
        "reluscope_finding_origin",
        "1 for the first layer, in graph order, where the change begins.",
        finding,
        ((key, 1.0) for key, f in found if f.origin),
    )
    for name, help_text, labels in (
        ("dead", "Share of a layer's channels that are dead, at the reference or newly.", DEAD),
        ("drifted", "Share of a layer's channels that drifted.", ("drifted",)),
    ):
        ratios = (
            ((w.model, w.version, name), sum(counts.get(label, 0) for label in labels) / counts["channels"])
            for w, check in checked
            for name, counts in check.layers.items()
            if counts.get("channels")
        )
        yield _family(f"reluscope_layer_{name}_ratio", help_text, layer, ratios)
    yield from _alarm_metrics(checked)
    yield _family(
        "reluscope_last_check_timestamp_seconds",
        "When the latest check ended, or when the version was first seen before the first one.",
        model,
        (((w.model, w.version), w.last_check.timestamp()) for w in live),
    )
    yield _family(
        "reluscope_check_requests",
        "Requests behind the latest check.",
        model,
        (((w.model, w.version), float(check.n)) for w, check in checked),
    )
    yield from _agreement_metrics([((w.model, w.version), one) for w, check in checked for one in check.comparisons])


def _agreement_metrics(seen: Sequence[tuple[tuple[str, str], Agreement]]) -> Iterator[GaugeMetricFamily]:
    """What paired replay said by the latest check; of several baselines of one kind, the worst speaks."""
    model = ("model", "version")
    yield _family(
        "reluscope_validation_accuracy",
        "Accuracy of the served model on the newest run of its labelled holdout.",
        model,
        ((key, one.accuracy) for key, one in seen if one.accuracy is not None),
        worst=min,
    )
    yield _family(
        "reluscope_quantized_accuracy_delta",
        "Served minus reference accuracy on the same labelled holdout: a loss is negative.",
        model,
        ((key, one.accuracy_delta) for key, one in seen if one.accuracy_delta is not None),
        worst=min,
    )
    yield _family(
        "reluscope_top1_agreement",
        "Share of compared requests with the same top-1 class as the baseline.",
        (*model, "baseline_kind"),
        (((*key, one.kind), one.top1_agreement) for key, one in seen if one.top1_agreement is not None),
        worst=min,
    )
    yield _family(
        "reluscope_probe_sqnr_db",
        "Signal-to-noise ratio of a layer against the reference model, in decibels.",
        (*model, "layer"),
        (
            ((*key, probe.layer), probe.sqnr_db)
            for key, one in seen
            if one.kind == "reference_model"
            for probe in one.probes
        ),
        worst=min,
    )
    yield _family(
        "reluscope_mismatch_ratio",
        "Share of compared requests with an output beyond the agent's tolerance.",
        (*model, "baseline_kind"),
        (((*key, one.kind), one.mismatch_share) for key, one in seen if one.mismatch_share is not None),
    )


def _alarm_metrics(checked: Collection[tuple[Watched, Check]]) -> Iterator[GaugeMetricFamily]:
    yield _family(
        "reluscope_alarm_evidence",
        "Evidence of change as a share of the alarm threshold, by test family; an alarm holds from 1 on.",
        ("model", "version", "family"),
        (((w.model, w.version, name), one["evidence"]) for w, check in checked for name, one in check.alarms.items()),
    )
    shares = []
    for watched, check in checked:
        # Layers without any label are no rectifiers: their channels cannot be dead.
        layers = [counts for counts in check.layers.values() if sum(counts.get(label, 0) for label in LABELS)]
        channels = sum(counts["channels"] for counts in layers)
        if channels:
            dead = sum(counts.get(label, 0) for counts in layers for label in DEAD)
            shares.append(((watched.model, watched.version), dead / channels))
    yield _family(
        "reluscope_dead_ratio",
        "Share of all rectifier channels that are dead, at the reference or newly; the objective is below 0.01.",
        ("model", "version"),
        shares,
    )


DEAD = ("dead_at_reference", "newly_dead")
"""Labels that count as dead; a dormant channel still responds now and then."""


def _family(
    name: str,
    documentation: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], float]],
    worst: Callable[[float, float], float] = max,
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    merged: dict[tuple[str, ...], float] = {}
    for key, value in samples:  # A repeated series would make Prometheus refuse the whole scrape.
        merged[key] = worst(value, merged.get(key, value))
    for key, value in merged.items():
        family.add_metric(key, value)
    return family
