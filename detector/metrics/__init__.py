"""What the detector exports to Prometheus.

Two kinds. Counters tell what this process did. Everything on models, windows, checks and findings comes from a
`Snapshot` of the store: replicas and restarted processes export the same, and a scrape never waits for Postgres.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from detector.metrics.families import check_metrics, family
from detector.metrics.snapshot import GAP_DAYS, Snapshot, SnapshotStore

__all__ = ["CONTENT_TYPE", "GAP_DAYS", "DetectorMetrics", "Snapshot", "SnapshotStore"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _SnapshotCollector(Collector):
    """Exports the newest snapshot; stale versions are left out at the time of the scrape, not of the snapshot."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.snapshot: Snapshot | None = None
        self._clock = clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        snapshot = self.snapshot or Snapshot({}, {}, {})
        now = self._clock()
        yield from check_metrics([w for w in snapshot.watched.values() if now <= w.until])
        yield family(
            "reluscope_last_window_timestamp_seconds",
            "End of the newest window of a deployed version, or its deployment before the first one.",
            ("model", "version"),
            ((key, at.timestamp()) for key, at in snapshot.last_window.items()),
        )
        yield family(
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
        self.refused_probes = Counter(
            "reluscope_refused_probes_total", "Layers left out of messages, and why.", ["reason"], registry=registry
        )
        self.refused_probes.labels("width")
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
