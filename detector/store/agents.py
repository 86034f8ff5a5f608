"""Every agent's layers, as few numbers each: what shows that one pod is odd."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, text

from detector.statistics.fleet import Agents, Scalars

# Averages are over finite values, so that a window full of NaN does not pull them to zero.
_INSIDE = text(
    """
    SELECT w.agent_id, p.name, sum(w.n)::bigint AS n, sum(f.pairs)::bigint AS pairs, max(w.max) AS max,
           coalesce(sum(w.active_share * f.pairs) / nullif(sum(f.pairs), 0)::double precision, 0) AS active_share,
           coalesce(sum(w.mean * f.pairs) / nullif(sum(f.pairs), 0)::double precision, 0) AS mean,
           sum(w.nonfinite)::bigint AS nonfinite
    FROM agent_windows w
    JOIN probes p ON p.id = w.probe_id
    CROSS JOIN LATERAL (SELECT w.n * coalesce(p.channels, 0) - w.nonfinite AS pairs) f
    WHERE p.model_version_id = :id AND w.window_start >= :start AND w.window_start < :end AND w.window_end <= :end
    GROUP BY w.agent_id, p.name
    """
)
_LIVE = text(
    """
    SELECT a.name FROM unnest(CAST(:names AS text[])) AS a (name)
    WHERE EXISTS (
        SELECT FROM probes p JOIN agent_windows w ON w.probe_id = p.id
        WHERE p.model_version_id = :id AND w.agent_id = a.name AND w.window_start >= :since
    )
    """
)


def inside(connection: Connection, version_id: int, start: datetime, end: datetime) -> Agents:
    """See `Store.agents`."""
    found: dict[str, dict[str, Scalars]] = {}
    for row in connection.execute(_INSIDE, {"id": version_id, "start": start, "end": end}):
        scalars = Scalars(row.n, row.pairs, row.active_share, row.mean, row.max, row.nonfinite)
        found.setdefault(row.agent_id, {})[row.name] = scalars
    return found


def live(connection: Connection, version_id: int, names: Collection[str], since: datetime) -> set[str]:
    """See `Store.live_agents`."""
    rows = connection.execute(_LIVE, {"id": version_id, "names": sorted(names), "since": since})
    return {row.name for row in rows}
