"""Merging windows into the model's rows and the agents' rows; the caller holds the model versions' merge locks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Integer, any_, case, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP, insert

from agent.summary import Summary, merge
from agent.wire import Comparison, Envelope, Probe, Window
from detector.domain.types import RefusedProbe
from detector.statistics.fleet import of_summary
from detector.store.probes import ProbeKey, probe_ids
from detector.store.rows import SUMMARY_COLUMNS, summary_from_row, summary_to_row
from detector.store.tables import agent_windows, windows

Versioned = tuple[int, Envelope]
"""An envelope and its model version's id."""
WindowKey = tuple[int, datetime, datetime]
"""Probe id, start, end."""


def merge_windows(connection: Connection, batch: Sequence[Versioned]) -> list[RefusedProbe]:
    """Adds all windows of a batch, but for layers of another width than before, which are returned."""
    ids, widths = _probe_ids(connection, batch)
    refused: list[RefusedProbe] = []
    merged: dict[WindowKey, Summary] = {}
    versions: dict[int, int] = {}
    agents: list[dict[str, Any]] = []
    for version_id, envelope in batch:
        if not isinstance(envelope.body, Window):
            continue
        start, end = moment(envelope.body.start_ms), moment(envelope.body.end_ms)
        for item in envelope.body.probes:
            known = widths[version_id, item.probe.name]
            if known is not None and item.summary.channels != known:
                layer, width = item.probe.name, item.summary.channels
                refused.append(RefusedProbe(envelope.model, envelope.version, layer, width, known))
                continue
            probe_id = ids[version_id, item.probe.name]
            versions[probe_id] = version_id
            key = (probe_id, start, end)
            merged[key] = merge(merged[key], item.summary) if key in merged else item.summary
            agents.append(_agent_row(envelope.agent_id, key, item.summary))
    if merged:
        _write(connection, merged, versions)
        _write_agents(connection, agents)
    return refused


def _probe_ids(
    connection: Connection, batch: Sequence[Versioned]
) -> tuple[dict[ProbeKey, int], dict[ProbeKey, int | None]]:
    """Ids and widths; makes unknown probes, keeps descriptions and widths up to date."""
    told: dict[ProbeKey, Probe] = {}
    widths: dict[ProbeKey, int] = {}
    for version_id, envelope in batch:
        body = envelope.body
        if isinstance(body, Comparison):  # see comparisons.merge_comparisons
            continue
        for probe in (item.probe for item in body.probes) if isinstance(body, Window) else body.probes:
            told[version_id, probe.name] = probe
        for item in body.probes if isinstance(body, Window) else ():
            widths.setdefault((version_id, item.probe.name), item.summary.channels)
    return probe_ids(connection, told, widths, describe=True)


def moment(unix_ms: int) -> datetime:
    """The time of a Unix timestamp in milliseconds, exactly."""
    return datetime.fromtimestamp(unix_ms // 1000, UTC).replace(microsecond=unix_ms % 1000 * 1000)


def _write(connection: Connection, merged: dict[WindowKey, Summary], versions: dict[int, int]) -> None:
    # All combinations of the probes and starts rather than pairs: two parameters, however wide the batch is.
    probe_ids, starts = sorted({key[0] for key in merged}), sorted({key[1] for key in merged})
    known = connection.execute(
        select(windows).where(
            windows.c.probe_id == any_(literal(probe_ids, ARRAY(Integer))),
            windows.c.window_start == any_(literal(starts, ARRAY(TIMESTAMP(timezone=True)))),
        )
    )
    for row in known.mappings():
        key = (row["probe_id"], row["window_start"], row["window_end"])
        if key in merged:
            merged[key] = merge(summary_from_row(row), merged[key])
    upsert = insert(windows)
    upsert = upsert.on_conflict_do_update(
        index_elements=["probe_id", "window_start", "window_end"],
        set_={name: upsert.excluded[name] for name in SUMMARY_COLUMNS},
    )
    rows = [
        {
            "model_version_id": versions[probe_id],
            "probe_id": probe_id,
            "window_start": start,
            "window_end": end,
            **summary_to_row(summary),
        }
        for (probe_id, start, end), summary in merged.items()
    ]
    connection.execute(upsert, rows)


def _agent_row(agent_id: str, key: WindowKey, summary: Summary) -> dict[str, Any]:
    scalars = of_summary(summary)
    return {
        "agent_id": agent_id,
        "probe_id": key[0],
        "window_start": key[1],
        "window_end": key[2],
        **{name: getattr(scalars, name) for name in ("n", "active_share", "mean", "max", "nonfinite")},
    }


def _write_agents(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """An agent may say a window in parts, as after a restart: parts are weighted by their requests."""
    table = agent_windows.c
    upsert = insert(agent_windows)
    new = upsert.excluded
    total = case((table.n + new.n == 0, 1), else_=table.n + new.n)
    averages = {name: (table[name] * table.n + new[name] * new.n) / total for name in ("active_share", "mean")}
    upsert = upsert.on_conflict_do_update(
        index_elements=["agent_id", "probe_id", "window_start", "window_end"],
        set_={
            "n": table.n + new.n,
            **averages,
            "max": func.greatest(table.max, new.max),
            "nonfinite": table.nonfinite + new.nonfinite,
        },
    )
    connection.execute(upsert, rows)
