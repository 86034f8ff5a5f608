"""What no check has seen: requests that came late, and those that were passed over. Counted, never silently lost.

The caller holds the model versions' merge locks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert

from detector.domain.types import Taken
from detector.store import locks, reading
from detector.store.errors import LostOwnership
from detector.store.tables import version_progress

LateSpan = tuple[int, datetime, datetime]
"""Model version's id, start, end."""

# Windows that are in the version's own reference are as good as checked: none is compared with itself.
_PASSED = text(
    """
    SELECT v.id, greatest(s.batch_end, r.window_end) AS passed
    FROM unnest(CAST(:ids AS integer[])) AS v (id)
    LEFT JOIN alarm_states s ON s.model_version_id = v.id
    LEFT JOIN model_references r
      ON r.model_version_id = v.id AND r.active AND r.source_version_id = v.id AND r.origin <> 'offline'
    """
)
_LATE = text(
    """
    SELECT w.model_version_id, max(w.late) AS late
    FROM windows w
    JOIN unnest(CAST(:ids AS integer[]), CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]))
      AS s (id, at, until) ON w.model_version_id = s.id AND w.window_start = s.at AND w.window_end = s.until
    WHERE w.window_start = ANY (CAST(:starts AS timestamptz[]))
    GROUP BY w.model_version_id, w.window_start, w.window_end
    """
)
_INSIDE = text(
    """
    SELECT coalesce(sum(n), 0) FROM (
        SELECT max(n) AS n FROM windows
        WHERE model_version_id = :id AND window_start >= :start AND window_start < :end
        GROUP BY window_start, window_end
    ) spans
    """
)


@dataclass
class Counted:
    """What `counting` found."""

    requests: int = 0


def passed(connection: Connection, version_ids: Collection[int]) -> Mapping[int, datetime]:
    """Until when checks are through with a version's windows; versions that none has begun with are absent."""
    rows = connection.execute(_PASSED, {"ids": sorted(version_ids)})
    return {row.id: row.passed for row in rows if row.passed is not None}


@contextmanager
def counting(connection: Connection, spans: Collection[LateSpan]) -> Iterator[Counted]:
    """Counts the requests that the block adds late to windows.

    A window's requests are those of its largest layer, as everywhere: one that comes in several messages, each with
    other layers, counts once.
    """
    counted = Counted()
    before = _late(connection, spans)
    yield counted
    for version_id, after in _late(connection, spans).items():
        more = after - before.get(version_id, 0)
        counted.requests += more
        _add(connection, version_id, late=more)


def take(connection: Connection, version_id: int, taken: Taken) -> None:
    """Counts what a check took in; raises LostOwnership where windows have grown since the check read them."""
    locks.wait(connection, locks.MERGE, version_id)
    inside = connection.execute(_INSIDE, {"id": version_id, "start": taken.start, "end": taken.end}).scalar_one()
    if inside != taken.inside:
        raise LostOwnership(
            f"windows of model version {version_id} grew from {taken.inside} to {inside} requests during the check"
        )
    _add(connection, version_id, checked=taken.checked, passed_over=taken.passed_over)


def as_read(connection: Connection, version_id: int, start: datetime, end: datetime, n: int) -> None:
    """Raises LostOwnership where windows inside [start, end] no longer hold ``n`` requests; holds the merge lock."""
    locks.wait(connection, locks.MERGE, version_id)
    inside = sum(span.n for span in reading.spans(connection, version_id, start, end))
    if inside != n:
        raise LostOwnership(
            f"windows of model version {version_id} went from {n} to {inside} requests while they were made a "
            "reference: try again"
        )


def _late(connection: Connection, spans: Collection[LateSpan]) -> dict[int, int]:
    if not spans:
        return {}
    ids, starts, ends = (list(column) for column in zip(*sorted(spans), strict=True))
    totals: dict[int, int] = {}
    for row in connection.execute(_LATE, {"ids": ids, "starts": starts, "ends": ends}):
        totals[row.model_version_id] = totals.get(row.model_version_id, 0) + row.late
    return totals


def _add(connection: Connection, version_id: int, **counts: int) -> None:
    upsert = insert(version_progress).values(
        model_version_id=version_id, **{"checked": 0, "passed_over": 0, "late": 0} | counts
    )
    table = version_progress.c
    connection.execute(
        upsert.on_conflict_do_update(
            index_elements=["model_version_id"], set_={name: table[name] + upsert.excluded[name] for name in counts}
        )
    )
