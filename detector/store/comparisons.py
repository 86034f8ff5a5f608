"""Comparisons of the served model with a baseline: added up by agent and window, read back summed over time.

Who compared with what is a *source*; its rows are narrow, and one bad pod or GPU can be found by its source. The caller
of `merge_comparisons` holds the model versions' merge locks, so that adding to a row counts every message once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Integer, RowMapping, any_, bindparam, insert, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.dialects.postgresql import insert as upsert_into

from agent.wire import Comparison, Envelope, Probe, ProbeComparison
from detector.store.errors import StoreRefused
from detector.store.merging import moment
from detector.store.tables import COMPARISON_COUNTS, comparison_sources, comparisons, probe_comparisons, probes
from detector.store.types import AgentComparison

SourceKey = tuple[int, str, str, str, str, str]
"""Model version's id, kind, baseline, digest, provider, agent."""
_SOURCE = ("model_version_id", "kind", "baseline", "baseline_digest", "provider", "agent_id")
_SUMS = ("n", "elements", "signal", "power", "noise", "cross_sum", "mismatched", "nonfinite")
_ARRAYS = ("only_served_active", "only_baseline_active")
_PROBE_KEY = ("source_id", "probe_id", "window_start", "window_end")
_TIMES: Any = ARRAY(TIMESTAMP(timezone=True))


def merge_comparisons(connection: Connection, batch: Sequence[tuple[int, Envelope]]) -> None:
    """Adds all comparisons of a batch, each with its model version's id.

    Raises StoreRefused where a layer has another width than before.
    """
    told = [(version_id, e.agent_id, e.body) for version_id, e in batch if isinstance(e.body, Comparison)]
    if not told:
        return
    sources = _source_ids(connection, [_source_key(*one) for one in told])
    layers = _probe_ids(connection, [(version_id, item) for version_id, _, body in told for item in body.probes])
    totals: dict[tuple[int, datetime, datetime], dict[str, int]] = {}
    parts: dict[tuple[int, int, datetime, datetime], dict[str, Any]] = {}
    for version_id, agent_id, body in told:
        source_id = sources[_source_key(version_id, agent_id, body)]
        span = (moment(body.start_ms), moment(body.end_ms))
        total = totals.setdefault((source_id, *span), dict.fromkeys(COMPARISON_COUNTS, 0))
        for name in COMPARISON_COUNTS:
            total[name] += getattr(body, name)
        for item in body.probes:
            key = (source_id, layers[version_id, item.probe.name], *span)
            parts[key] = _added(parts[key], _row(item), item.probe.name) if key in parts else _row(item)
    _write_totals(connection, totals)
    if parts:
        _write_parts(connection, parts)


def read(connection: Connection, version_id: int, since: datetime, until: datetime) -> list[AgentComparison]:
    """See `Store.comparisons`."""
    rows = connection.execute(_TOTALS, {"id": version_id, "since": since, "until": until}).mappings().all()
    if not rows:
        return []
    items: dict[int, list[ProbeComparison]] = {row["source_id"]: [] for row in rows}
    spans = [(row["source_id"], row["window_start"], row["window_end"]) for row in rows]
    for part in connection.execute(_PARTS, _keys(spans)).mappings():
        items[part["source_id"]].append(_item(part))
    return [
        AgentComparison(
            source_id=row["source_id"],
            agent_id=row["agent_id"],
            comparison=Comparison(
                start_ms=_ms(row["window_start"]),
                end_ms=_ms(row["window_end"]),
                probes=tuple(items[row["source_id"]]),
                **{name: row[name] for name in ("kind", "baseline", "baseline_digest", "provider", *COMPARISON_COUNTS)},
            ),
        )
        for row in rows
    ]


def channel_activity(
    connection: Connection, of: Sequence[AgentComparison], layer: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """See `Store.channel_activity`."""
    spans = [(one.source_id, moment(one.comparison.start_ms), moment(one.comparison.end_ms)) for one in of]
    served = baseline = np.zeros(0, np.int64)
    for row in connection.execute(_ACTIVITY, {**_keys(spans), "layer": layer}).mappings():
        served = _plus(served, np.array(row["only_served_active"], np.int64), layer)
        baseline = _plus(baseline, np.array(row["only_baseline_active"], np.int64), layer)
    return served, baseline


def _source_key(version_id: int, agent_id: str, body: Comparison) -> SourceKey:
    return version_id, body.kind, body.baseline, body.baseline_digest, body.provider, agent_id


def _source_ids(connection: Connection, keys: Iterable[SourceKey]) -> dict[SourceKey, int]:
    wanted = sorted(set(keys))
    statement = upsert_into(comparison_sources).on_conflict_do_nothing()
    connection.execute(statement, [dict(zip(_SOURCE, key, strict=True)) for key in wanted])
    table = comparison_sources.c
    rows = connection.execute(select(comparison_sources).where(table.model_version_id.in_({key[0] for key in wanted})))
    return {
        (row.model_version_id, row.kind, row.baseline, row.baseline_digest, row.provider, row.agent_id): row.id
        for row in rows
    }


def _probe_ids(connection: Connection, items: Sequence[tuple[int, ProbeComparison]]) -> dict[tuple[int, str], int]:
    """Ids by (model version, layer). Unknown probes are made; how known ones are described is for windows to say."""
    if not items:
        return {}
    table = probes.c
    rows = connection.execute(
        select(table.id, table.model_version_id, table.name, table.channels).where(
            table.model_version_id.in_({version_id for version_id, _ in items})
        )
    )
    ids: dict[tuple[int, str], int] = {}
    widths: dict[tuple[int, str], int | None] = {}
    for row in rows:
        ids[row.model_version_id, row.name] = row.id
        widths[row.model_version_id, row.name] = row.channels
    fresh: dict[tuple[int, str], Probe] = {}
    for version_id, item in items:
        key, width = (version_id, item.probe.name), len(item.only_served_active) or None
        known = widths.get(key)
        if None not in (known, width) and known != width:
            raise StoreRefused(f"layer {key[1]} has {width} channels here and {known} elsewhere in the same version")
        widths[key] = known or width or item.probe.channels
        if key not in ids:
            fresh[key] = item.probe
    if fresh:
        names = ("name", "op", "tensor", "kind", "axis", "position", "exact_zero")
        values = [
            {"model_version_id": key[0], "channels": widths[key], **{name: getattr(probe, name) for name in names}}
            for key, probe in fresh.items()
        ]
        made = connection.execute(insert(probes).returning(table.id, table.model_version_id, table.name), values)
        ids.update({(row.model_version_id, row.name): row.id for row in made})
    return ids


def _row(item: ProbeComparison) -> dict[str, Any]:
    names = {name: "cross" if name == "cross_sum" else name for name in (*_SUMS, "max_abs_error", *_ARRAYS)}
    return {column: getattr(item, name) for column, name in names.items()}


def _added(a: dict[str, Any], b: dict[str, Any], layer: str) -> dict[str, Any]:
    return {
        **{name: a[name] + b[name] for name in _SUMS},
        "max_abs_error": max(a["max_abs_error"], b["max_abs_error"]),
        **{name: _plus(np.asarray(a[name], np.int64), np.asarray(b[name], np.int64), layer) for name in _ARRAYS},
    }


def _plus(a: NDArray[np.int64], b: NDArray[np.int64], layer: str) -> NDArray[np.int64]:
    """A probe without channels adds nothing."""
    if not len(a) or not len(b):
        return a if len(a) else b
    if len(a) != len(b):
        raise StoreRefused(f"layer {layer} has {len(a)} channels in one comparison and {len(b)} in another")
    return a + b


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
            table.window_start == any_(literal(starts, _TIMES)),
        )
    )
    for row in known.mappings():
        key = (row["source_id"], row["probe_id"], row["window_start"], row["window_end"])
        if key in parts:
            parts[key] = _added(dict(row), parts[key], f"with id {row['probe_id']}")
    statement = upsert_into(probe_comparisons)
    values = (*_SUMS, "max_abs_error", *_ARRAYS)
    statement = statement.on_conflict_do_update(
        index_elements=list(_PROBE_KEY), set_={name: statement.excluded[name] for name in values}
    )
    rows = [
        {**dict(zip(_PROBE_KEY, key, strict=True)), **row, **{name: np.asarray(row[name]).tolist() for name in _ARRAYS}}
        for key, row in parts.items()
    ]
    connection.execute(statement, rows)


def _keys(spans: Sequence[tuple[int, datetime, datetime]]) -> dict[str, Any]:
    """Parameters of the queries below; the outer bounds let Postgres skip whole days."""
    ids, starts, ends = zip(*spans, strict=True)
    return {"ids": list(ids), "starts": list(starts), "ends": list(ends), "first": min(starts), "last": max(ends)}


def _item(row: RowMapping) -> ProbeComparison:
    none = np.zeros(0, np.int64)
    probe = Probe(**{n: row[n] for n in ("name", "op", "tensor", "channels", "axis", "kind", "position", "exact_zero")})
    sums = {"cross" if name == "cross_sum" else name: row[name] for name in (*_SUMS, "max_abs_error")}
    return ProbeComparison(probe=probe, only_served_active=none, only_baseline_active=none, **sums)


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


_ADDED_COUNTS = ", ".join(f"sum(c.{name})::bigint AS {name}" for name in COMPARISON_COUNTS)
# A holdout is the same requests at every run: runs are never added up, the newest stands for its source.
_TOTALS = text(
    f"""
    WITH picked AS (
        SELECT c.* FROM comparison_sources s JOIN comparisons c ON c.source_id = s.id
        WHERE s.model_version_id = :id AND s.kind <> 'holdout'
          AND c.window_start >= :since AND c.window_start < :until AND c.window_end <= :until
        UNION ALL
        SELECT newest.* FROM comparison_sources s CROSS JOIN LATERAL (
            SELECT * FROM comparisons h WHERE h.source_id = s.id AND h.window_end <= :until
            ORDER BY h.window_start DESC, h.window_end DESC LIMIT 1
        ) newest
        WHERE s.model_version_id = :id AND s.kind = 'holdout'
    )
    SELECT s.id AS source_id, s.kind, s.baseline, s.baseline_digest, s.provider, s.agent_id,
           min(c.window_start) AS window_start, max(c.window_end) AS window_end, {_ADDED_COUNTS}
    FROM picked c
    JOIN comparison_sources s ON s.id = c.source_id
    GROUP BY s.id
    ORDER BY s.kind, s.baseline, s.agent_id, s.id
    """  # noqa: S608 - fixed names of columns
)
_SPANS = """
    JOIN unnest(:ids, :starts, :ends) AS k (source_id, window_start, window_end)
      ON p.source_id = k.source_id AND p.window_start >= k.window_start AND p.window_end <= k.window_end
    WHERE p.window_start >= :first AND p.window_start < :last
"""
_BOUND = (bindparam("ids", type_=ARRAY(Integer)), bindparam("starts", type_=_TIMES), bindparam("ends", type_=_TIMES))
_PARTS = text(
    f"""
    SELECT a.*, l.name, l.op, l.tensor, l.channels, l.axis, l.kind, l.position, l.exact_zero
    FROM (
        SELECT p.source_id, p.probe_id, sum(p.n)::bigint AS n, sum(p.elements)::bigint AS elements,
               sum(p.signal) AS signal, sum(p.power) AS power, sum(p.noise) AS noise, sum(p.cross_sum) AS cross_sum,
               max(p.max_abs_error) AS max_abs_error,
               sum(p.mismatched)::bigint AS mismatched, sum(p.nonfinite)::bigint AS nonfinite
        FROM probe_comparisons p {_SPANS}
        GROUP BY p.source_id, p.probe_id
    ) a
    JOIN probes l ON l.id = a.probe_id
    ORDER BY a.source_id, l.position, l.id
    """  # noqa: S608 - a constant of this module
).bindparams(*_BOUND)
_ACTIVITY = text(
    f"""
    SELECT p.only_served_active, p.only_baseline_active
    FROM probe_comparisons p
    JOIN probes l ON l.id = p.probe_id AND l.name = :layer {_SPANS}
    """  # noqa: S608 - a constant of this module
).bindparams(*_BOUND)
