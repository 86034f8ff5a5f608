"""Reads what the product itself publishes: both processes' metrics, the detector's findings, the SQL views."""

from __future__ import annotations

import http.client
import json
import math
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

import psycopg

from deploy.demo.stage import MODEL, Stage
from deploy.demo.view import Layer, Story
from deploy.local.postgres import psycopg_url

_SAMPLE = re.compile(r"^([a-z_]+)(?:\{[^}]*\})? ([^ ]+)$")
LAYERS_SQL: LiteralString = """
SELECT window_start, layer, kind, channels, mean, sparsity
FROM layer_health
WHERE model = %s AND version = %s AND window_start >= now() - interval '5 minutes'
ORDER BY window_start, position
"""


@dataclass(frozen=True, slots=True)
class Found:
    """One finding of a check, as much of it as the demo judges and shows."""

    layer: str
    kind: str
    test: str
    cause: str
    origin: bool
    channels: tuple[int, ...]
    summary: str
    alert: str
    severity: str


@dataclass(frozen=True, slots=True)
class Seen:
    """One check, as the detector's /api/v1/findings tells it."""

    id: int
    version: str
    status: str
    note: str
    n: int
    window_end: datetime | None
    layers: dict[str, dict[str, int]]
    findings: tuple[Found, ...]


def parse_check(raw: dict[str, Any]) -> Seen:
    """A `Seen` from one element of `checks`."""
    findings = tuple(
        Found(
            layer=one["layer"],
            kind=one["kind"],
            test=one["test"],
            cause=one["cause"],
            origin=one["origin"],
            channels=tuple(one["channels"]),
            summary=one["summary"],
            alert=one["alert"],
            severity=one["severity"],
        )
        for one in raw["findings"]
    )
    end = raw["window_end"]
    return Seen(
        id=raw["id"],
        version=raw["version"],
        status=raw["status"],
        note=raw["note"],
        n=raw["n"],
        window_end=datetime.fromisoformat(end) if end else None,
        layers=raw["layers"],
        findings=findings,
    )


def metric_sums(text: str) -> dict[str, float]:
    """Prometheus text as the sum over each name's series."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            sums[match[1]] = sums.get(match[1], 0.0) + float(match[2])
    return sums


@dataclass(slots=True)
class Watcher:
    """Polls the stage. A process that does not answer leaves the last values; `Stage.check_alive` finds out why."""

    stage: Stage
    version: str = "1"
    """Whose layers are shown."""
    _known: set[int] = field(default_factory=set)
    _windows: set[tuple[str, datetime]] = field(default_factory=set)

    def poll(self, story: Story) -> list[Seen]:
        """Fill in the story's numbers; return the checks that are new since the last call, oldest first."""
        self._metrics(story)
        self._layers(story)
        checks = self._checks()
        for check in checks:
            if check.version == self.version:
                for layer in story.layers.values():
                    counts = check.layers.get(layer.name, {})
                    layer.dead = counts.get("newly_dead", 0) + counts.get("dead_at_reference", 0)
                    layer.drifted = counts.get("drifted", 0)
        fresh = [check for check in checks if check.id not in self._known]
        self._known.update(check.id for check in fresh)
        return sorted(fresh, key=lambda check: check.id)

    def query(self, sql: LiteralString, parameters: Sequence[object] = ()) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of a query, as a reviewer would get them."""
        with (
            psycopg.connect(psycopg_url(self.stage.database_url), connect_timeout=5) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql, parameters or None)
            return [column.name for column in cursor.description or ()], cursor.fetchall()

    def routed_alerts(self) -> set[str]:
        """Names of the alerts that came back through Alertmanager's webhook."""
        _, rows = self.query("SELECT DISTINCT alertname FROM alert_timeline")
        return {name for (name,) in rows}

    def runbook_url(self, alert: str) -> str:
        """The link to the version of the runbook that the detector serves now for an alert."""
        url = f"{self.stage.detector_url}/runbooks/{alert}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return f"{url}/v{answer.headers['x-runbook-version']}"

    def _metrics(self, story: Story) -> None:
        agent = metric_sums(_get(f"{self.stage.agent_url}/metrics"))
        detector = metric_sums(_get(f"{self.stage.detector_url}/metrics"))
        for label, source, name in (
            ("sampled", agent, "reluscope_agent_sampled_total"),
            ("replayed", agent, "reluscope_agent_replayed_total"),
            ("dropped", agent, "reluscope_agent_dropped_total"),
            ("published", agent, "reluscope_agent_published_total"),
            ("ingested", detector, "reluscope_ingested_messages_total"),
        ):
            if name in source:
                story.pipeline[label] = f"{source[name]:,.0f}"

    def _layers(self, story: Story) -> None:
        _, rows = self.query(LAYERS_SQL, (MODEL, self.version))
        for start, name, kind, channels, mean, sparsity in rows:
            layer = story.layers.setdefault(name, Layer(name, kind, channels))
            key = (f"{self.version}/{name}", start)
            if key not in self._windows:
                self._windows.add(key)
                # Null where no request was finite.
                layer.mean = math.nan if mean is None else mean
                if sparsity is not None:
                    layer.sparsity.append(sparsity)

    def _checks(self) -> list[Seen]:
        text = _get(f"{self.stage.detector_url}/api/v1/findings")
        return [parse_check(raw) for raw in json.loads(text)["checks"]] if text else []


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return ""
