"""Reading comparisons back, summed over time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Integer, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from agent.wire import Comparison, Probe, ProbeComparison
from detector.domain.types import AgentComparison
from detector.store.comparisons import SUMS, TIMES, plus
from detector.store.merging import moment
from detector.store.tables import COMPARISON_COUNTS

_NAMES = ("kind", "baseline", "baseline_digest", "reference", "provider")


def read(
    connection: Connection, version_id: int, since: datetime, until: datetime, holdouts_since: datetime
) -> list[AgentComparison]:
    """See `Store.comparisons`."""
    about = {"id": version_id, "since": since, "until": until, "holdouts_since": holdouts_since}
    rows = connection.execute(_TOTALS, about).mappings().all()
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
                **{name: row[name] for name in (*_NAMES, *COMPARISON_COUNTS)},
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
        served = plus(served, np.array(row["only_served_active"], np.int64))
        baseline = plus(baseline, np.array(row["only_baseline_active"], np.int64))
    return served, baseline


def _keys(spans: Sequence[tuple[int, datetime, datetime]]) -> dict[str, Any]:
    """Parameters of the queries below; the outer bounds let Postgres skip whole days."""
    ids, starts, ends = zip(*spans, strict=True)
    return {"ids": list(ids), "starts": list(starts), "ends": list(ends), "first": min(starts), "last": max(ends)}


def _item(row: RowMapping) -> ProbeComparison:
    none = np.zeros(0, np.int64)
    probe = Probe(**{n: row[n] for n in ("name", "op", "tensor", "channels", "axis", "kind", "position", "exact_zero")})
    sums = {"cross" if name == "cross_sum" else name: row[name] for name in (*SUMS, "max_abs_error")}
    return ProbeComparison(probe=probe, only_served_active=none, only_baseline_active=none, **sums)


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


_ADDED_COUNTS = ", ".join(f"sum(c.{name})::bigint AS {name}" for name in COMPARISON_COUNTS)
# A holdout is the same requests however often it is told: what was told last stands for its source.
_TOTALS = text(
    f"""
    WITH picked AS (
        SELECT c.* FROM comparison_sources s JOIN comparisons c ON c.source_id = s.id
        WHERE s.model_version_id = :id AND s.kind <> 'holdout'
          AND c.window_start >= :since AND c.window_start < :until AND c.window_end <= :until
        UNION ALL
        SELECT newest.* FROM comparison_sources s CROSS JOIN LATERAL (
            SELECT * FROM comparisons h
            WHERE h.source_id = s.id AND h.window_start >= :holdouts_since AND h.window_start < :until
              AND h.window_end <= :until
            ORDER BY h.window_start DESC, h.window_end DESC LIMIT 1
        ) newest
        WHERE s.model_version_id = :id AND s.kind = 'holdout'
    )
    SELECT s.id AS source_id, s.kind, s.baseline, s.baseline_digest, s.reference, s.provider, s.agent_id,
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
_BOUND = (bindparam("ids", type_=ARRAY(Integer)), bindparam("starts", type_=TIMES), bindparam("ends", type_=TIMES))
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
