"""Comparisons of the served model with a baseline, added up by agent and window.

Who compared with what is a *source*; its rows are narrow, and one bad pod or GPU can be found by its source. The caller
of `merge_comparisons` holds the model versions' merge locks, so that adding to a row counts every message once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Integer, any_, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.dialects.postgresql import insert as upsert_into

from agent.wire import Comparison, Envelope, Probe, ProbeComparison
from detector.domain.types import RefusedProbe
from detector.store.merging import moment
from detector.store.probes import ProbeKey, probe_ids
from detector.store.tables import COMPARISON_COUNTS, comparison_sources, comparisons, probe_comparisons

SourceKey = tuple[int, str, str, str, str, str, str]
"""Model version's id, kind, baseline, digest, reference, provider, agent."""
_SOURCE = ("model_version_id", "kind", "baseline", "baseline_digest", "reference", "provider", "agent_id")
SUMS = ("n", "elements", "signal", "power", "noise", "cross_sum", "mismatched", "nonfinite")
_ARRAYS = ("only_served_active", "only_baseline_active")
_PROBE_KEY = ("source_id", "probe_id", "window_start", "window_end")
TIMES: Any = ARRAY(TIMESTAMP(timezone=True))


def merge_comparisons(connection: Connection, batch: Sequence[tuple[int, Envelope]]) -> list[RefusedProbe]:
    """Adds all comparisons of a batch, each with its model version's id.

    Layers whose counts by channel are of another width than before are left out, and returned.
    """
    told = [(version_id, e.agent_id, e.body) for version_id, e in batch if isinstance(e.body, Comparison)]
    if not told:
        return []
    sources = _source_ids(connection, [_source_key(*one) for one in told])
    items = [(version_id, item) for version_id, _, body in told for item in body.probes]
    layers, widths = _probe_ids(connection, items)
    names = {version_id: (envelope.model, envelope.version) for version_id, envelope in batch}
    refused: list[RefusedProbe] = []
    totals: dict[tuple[int, datetime, datetime], dict[str, int]] = {}
    parts: dict[tuple[int, int, datetime, datetime], dict[str, Any]] = {}
    for version_id, agent_id, body in told:
        source_id = sources[_source_key(version_id, agent_id, body)]
        span = (moment(body.start_ms), moment(body.end_ms))
        total = totals.setdefault((source_id, *span), dict.fromkeys(COMPARISON_COUNTS, 0))
        for name in COMPARISON_COUNTS:
            total[name] += getattr(body, name)
        for item in body.probes:
            known, width = widths[version_id, item.probe.name], len(item.only_served_active)
            if width and known is not None and width != known:
                refused.append(RefusedProbe(*names[version_id], item.probe.name, width, known))
                continue
            key = (source_id, layers[version_id, item.probe.name], *span)
            parts[key] = _added(parts[key], _row(item)) if key in parts else _row(item)
    _write_totals(connection, totals)
    if parts:
        _write_parts(connection, parts)
    return refused


def _source_key(version_id: int, agent_id: str, body: Comparison) -> SourceKey:
    return version_id, body.kind, body.baseline, body.baseline_digest, body.reference, body.provider, agent_id


def _source_ids(connection: Connection, keys: Iterable[SourceKey]) -> dict[SourceKey, int]:
    wanted = set(keys)
    known = _known_sources(connection, wanted)
    # Only what is new: an insert that meets a conflict takes an id all the same, and they would run out.
    if fresh := sorted(wanted - known.keys()):
        statement = upsert_into(comparison_sources).on_conflict_do_nothing()
        connection.execute(statement, [dict(zip(_SOURCE, key, strict=True)) for key in fresh])
        known = _known_sources(connection, wanted)
    return known


def _known_sources(connection: Connection, keys: Iterable[SourceKey]) -> dict[SourceKey, int]:
    """Of the same model versions, asked for or not."""
    versions = comparison_sources.c.model_version_id.in_({key[0] for key in keys})
    return {
        (
            row.model_version_id, row.kind, row.baseline, row.baseline_digest, row.reference, row.provider,
            row.agent_id,
        ): row.id
        for row in connection.execute(select(comparison_sources).where(versions))
    }  # fmt: skip


def _probe_ids(
    connection: Connection, items: Sequence[tuple[int, ProbeComparison]]
) -> tuple[dict[ProbeKey, int], dict[ProbeKey, int | None]]:
    """Ids and widths; unknown probes are made; how known ones are described is for windows to say."""
    told: dict[ProbeKey, Probe] = {}
    widths: dict[ProbeKey, int] = {}
    for version_id, item in items:
        key = (version_id, item.probe.name)
        told.setdefault(key, item.probe)
        if width := len(item.only_served_active):
            widths.setdefault(key, width)
    return probe_ids(connection, told, widths, describe=False)


def _row(item: ProbeComparison) -> dict[str, Any]:
    names = {name: "cross" if name == "cross_sum" else name for name in (*SUMS, "max_abs_error", *_ARRAYS)}
    return {column: getattr(item, name) for column, name in names.items()}


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: a[name] + b[name] for name in SUMS},
        "max_abs_error": max(a["max_abs_error"], b["max_abs_error"]),
        **{name: plus(np.asarray(a[name], np.int64), np.asarray(b[name], np.int64)) for name in _ARRAYS},
    }


def plus(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts by channel added up; a probe without channels adds nothing, nor does one of another width than the first,
    as releases stored them that did not keep to a width."""
    if not len(a) or not len(b):
        return a if len(a) else b
    return a + b if len(a) == len(b) else a


def _write_totals(connection: Connection, totals: dict[tuple[int, datetime, datetime], dict[str, int]]) -> None:
    statement = upsert_into(comparisons)
    statement = statement.on_conflict_do_update(
        index_elements=["source_id", "window_start", "window_end"],
        set_={name: comparisons.c[name] + statement.excluded[name] for name in COMPARISON_COUNTS},
    )
    rows = [
        {"source_id": source_id, "window_start": start, "window_end": end, **counts}
        for (source_id, start, end), counts in totals.items()
    ]
    connection.execute(statement, rows)


def _write_parts(connection: Connection, parts: dict[tuple[int, int, datetime, datetime], dict[str, Any]]) -> None:
    table = probe_comparisons.c
    sources, starts = sorted({key[0] for key in parts}), sorted({key[2] for key in parts})
    known = connection.execute(
        select(probe_comparisons).where(
            table.source_id == any_(literal(sources, ARRAY(Integer))),
            table.window_start == any_(literal(starts, TIMES)),
        )
    )
    for row in known.mappings():
        key = (row["source_id"], row["probe_id"], row["window_start"], row["window_end"])
        if key in parts:
            parts[key] = _added(dict(row), parts[key])
    statement = upsert_into(probe_comparisons)
    values = (*SUMS, "max_abs_error", *_ARRAYS)
    statement = statement.on_conflict_do_update(
        index_elements=list(_PROBE_KEY), set_={name: statement.excluded[name] for name in values}
    )
    rows = [
        {**dict(zip(_PROBE_KEY, key, strict=True)), **row, **{name: np.asarray(row[name]).tolist() for name in _ARRAYS}}
        for key, row in parts.items()
    ]
    connection.execute(statement, rows)
