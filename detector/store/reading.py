"""Reading windows back."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, func, select, text

from agent.summary import Summary, merge
from detector.domain.batches import Span
from detector.domain.types import HistoryPoint
from detector.store.rows import SUMMARY_COLUMNS, summary_from_row
from detector.store.tables import probes, windows


def _inside(version_id: int, start: datetime, end: datetime) -> tuple[object, ...]:
    # The upper bound on window_start follows from the others; said aloud, Postgres skips later partitions.
    return (
        windows.c.model_version_id == version_id,
        windows.c.window_start >= start,
        windows.c.window_start < end,
        windows.c.window_end <= end,
    )


def spans(connection: Connection, version_id: int, start: datetime, end: datetime) -> list[Span]:
    """See `Store.spans`."""
    columns = (windows.c.window_start, windows.c.window_end)
    query = select(*columns, func.max(windows.c.n).label("n")).where(*_inside(version_id, start, end))  # type: ignore[arg-type]
    rows = connection.execute(query.group_by(*columns).order_by(*columns))
    return [Span(row.window_start, row.window_end, row.n) for row in rows]


def summaries(connection: Connection, version_id: int, start: datetime, end: datetime) -> dict[str, Summary]:
    """See `Store.summaries`."""
    columns = (probes.c.name, *(windows.c[name] for name in SUMMARY_COLUMNS))
    query = select(*columns).join_from(windows, probes, probes.c.id == windows.c.probe_id)
    query = query.where(*_inside(version_id, start, end))  # type: ignore[arg-type]
    query = query.order_by(probes.c.position, probes.c.id, windows.c.window_start, windows.c.window_end)
    merged: dict[str, Summary] = {}
    for row in connection.execute(query).mappings():
        summary = summary_from_row(row)
        merged[row["name"]] = merge(merged[row["name"]], summary) if row["name"] in merged else summary
    return merged


_HISTORY = text(
    """
    SELECT window_start, layer, kind, position, n, coalesce(active_share, 0) AS active_share,
           coalesce(mean, 0) AS mean, coalesce(max, 0) AS max, nonfinite
    FROM layer_health
    WHERE model_version_id = :id AND window_start >= :start AND window_start < :end AND window_end <= :end
    ORDER BY window_start, position, layer
    """
)


def history(connection: Connection, version_id: int, start: datetime, end: datetime) -> list[HistoryPoint]:
    """See `Store.history`."""
    rows = connection.execute(_HISTORY, {"id": version_id, "start": start, "end": end})
    return [HistoryPoint(**row) for row in rows.mappings()]
