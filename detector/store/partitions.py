"""Daily partitions of the windows: made ahead, dropped by retention. Days are UTC.

A row whose day has no partition lands in the default one, so that ingest never fails for want of housekeeping; when
its day's partition is made, the row moves there. Names in the statements below are of this module's own making.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection, text

from detector.store import locks
from detector.store.database import Database

_HOLDOUTS = "source_id IN (SELECT id FROM comparison_sources WHERE kind = 'holdout')"
PARTITIONED: dict[str, str | None] = {
    "windows": None,
    "agent_windows": None,
    "comparisons": _HOLDOUTS,
    "probe_comparisons": _HOLDOUTS,
}
"""Tables, and of which of their rows the newest stays for ever: a version's accuracy, however long ago it served."""
LOCK_TIMEOUT = "5s"
"""Ingest waits behind this; where the lock is not had in time, the next round tries again."""
_CHILDREN = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
    "WHERE i.inhparent = to_regclass(:parent) ORDER BY c.relname"
)


def maintain(database: Database, now: datetime, retention_days: int, days_ahead: int) -> None:
    """See `Store.maintain`. Each partition is a transaction of its own, so that locks are short."""
    if retention_days < 1 or days_ahead < 0:
        raise ValueError(f"retention_days {retention_days} must be at least 1 and days_ahead {days_ahead} at least 0")
    today = now.astimezone(UTC).date()
    oldest = today - timedelta(days=retention_days)
    for parent in PARTITIONED:
        for ahead in range(days_ahead + 1):
            with database.begin() as connection:
                if not _enter(connection):
                    return
                _make(connection, parent, today + timedelta(days=ahead))
        with database.begin() as connection:
            if not _enter(connection):
                return
            _drop(connection, parent, oldest, PARTITIONED[parent])
    with database.begin() as connection:
        if _enter(connection):
            forget = text("DELETE FROM ingest_keys WHERE received_at < :oldest")
            connection.execute(forget, {"oldest": _midnight(oldest)})


def _enter(connection: Connection) -> bool:
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
    return locks.attempt(connection, locks.MAINTENANCE, 0)


def _make(connection: Connection, parent: str, day: date) -> None:
    name = f"{parent}_{day:%Y%m%d}"
    if name in connection.execute(_CHILDREN, {"parent": parent}).scalars().all():
        return
    span = {"start": _midnight(day), "end": _midnight(day + timedelta(days=1))}
    default = f"{parent}_default"
    # The parent, not just the default partition: a writer that has chosen the default partition already, and waits for
    # it, would be refused once the day is attached. And exclusively: a reader that goes on to write would deadlock.
    connection.execute(text(f"LOCK TABLE ONLY {parent} IN ACCESS EXCLUSIVE MODE"))
    connection.execute(text(f"CREATE TABLE {name} (LIKE {parent} INCLUDING ALL)"))
    moved = f"DELETE FROM {default} WHERE window_start >= :start AND window_start < :end RETURNING *"  # noqa: S608
    connection.execute(text(f"WITH moved AS ({moved}) INSERT INTO {name} SELECT * FROM moved"), span)  # noqa: S608
    bounds = f"FROM ('{span['start'].isoformat()}') TO ('{span['end'].isoformat()}')"
    connection.execute(text(f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES {bounds}"))


def _drop(connection: Connection, parent: str, oldest: date, stays: str | None) -> None:
    """Drops days before ``oldest``; rows of which ``stays`` holds move to the default partition, where each source's
    newest stays."""
    for name in connection.execute(_CHILDREN, {"parent": parent}).scalars().all():
        match = re.fullmatch(rf"{parent}_(\d{{8}})", name)
        if match and date.fromisoformat(match[1]) < oldest:
            if stays is not None:
                connection.execute(text(f"ALTER TABLE {parent} DETACH PARTITION {name}"))
                connection.execute(text(f"INSERT INTO {parent} SELECT * FROM {name} WHERE {stays}"))  # noqa: S608
            connection.execute(text(f"DROP TABLE {name}"))
    newer = f"SELECT FROM {parent} newer WHERE newer.source_id = d.source_id AND newer.window_start > d.window_start"
    kept = "false" if stays is None else f"d.{stays} AND NOT EXISTS ({newer})"
    late = text(f"DELETE FROM {parent}_default d WHERE d.window_start < :oldest AND NOT ({kept})")  # noqa: S608
    connection.execute(late, {"oldest": _midnight(oldest)})


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
