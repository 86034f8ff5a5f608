"""docs/metrics.md names every series that agent and detector export, with its labels, in the words of its HELP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics import MetricWrapperBase

from agent.metrics import AgentMetrics
from detector.metrics import DetectorMetrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def row(name: str, labels: tuple[str, ...], text: str) -> str:
    inside = f"{{{','.join(labels)}}}" if labels else ""
    return f"| `{name}{inside}` | {text} |"


def kept(metrics: object) -> Iterator[str]:
    """Of the series that are attributes."""
    for one in vars(metrics).values():
        if isinstance(one, MetricWrapperBase):
            total = "_total" if one._type == "counter" else ""
            yield row(one._name + total, tuple(one._labelnames), one._documentation)


def collected(metrics: DetectorMetrics) -> Iterator[str]:
    """Of the series that are made from a snapshot."""
    for one in metrics._collector.collect():
        total = "_total" if isinstance(one, CounterMetricFamily) else ""
        yield row(one.name + total, tuple(getattr(one, "_labelnames", ())), one.documentation)


def told(metrics: AgentMetrics | DetectorMetrics) -> set[str]:
    return {*kept(metrics), *(collected(metrics) if isinstance(metrics, DetectorMetrics) else ())}


def test_the_page_has_every_series_and_no_other() -> None:
    rows = {line for line in PAGE.read_text().splitlines() if line.startswith("| `reluscope_")}
    assert rows == told(AgentMetrics()) | told(DetectorMetrics(lambda: datetime.now(UTC), 1.0))
