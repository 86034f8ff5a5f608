"""When each model version is to be checked next, moved forward by compare-and-swap in the check's own transaction."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select, text, update
from sqlalchemy.dialects.postgresql import insert

from detector.domain.turns import Turn, turn_at
from detector.store import locks
from detector.store.errors import LostOwnership
from detector.store.tables import check_turns

_KEEPALIVES = text(
    "SELECT set_config('tcp_keepalives_idle', '15', true), set_config('tcp_keepalives_interval', '5', true), "
    "set_config('tcp_keepalives_count', '3', true)"
)
"""A detector whose machine vanished says no goodbye: after half a minute Postgres takes its lock back."""


def take(connection: Connection, version_id: int, now: datetime, interval: float) -> Turn | None:
    """See `Store.turn`."""
    table = check_turns.c
    query = select(table.next_due).where(table.model_version_id == version_id)
    if turn_at(connection.execute(query).scalar_one_or_none(), now, interval) is None:
        return None
    connection.execute(_KEEPALIVES)
    if not locks.attempt(connection, locks.CHECK, version_id):
        return None
    # Once more: another detector may have checked it between the first look and the lock.
    return turn_at(connection.execute(query).scalar_one_or_none(), now, interval)


def move(connection: Connection, version_id: int, turn: Turn) -> None:
    """Stores the next due time; raises LostOwnership where the turn is no longer the one that was taken."""
    if turn.before is None:
        statement = insert(check_turns).values(model_version_id=version_id, next_due=turn.next_due)
        moved = connection.execute(statement.on_conflict_do_nothing().returning(check_turns.c.next_due))
    else:
        table = check_turns.c
        moved = connection.execute(
            update(check_turns)
            .where(table.model_version_id == version_id, table.next_due == turn.before)
            .values(next_due=turn.next_due)
            .returning(table.next_due)
        )
    if moved.first() is None:
        raise LostOwnership(f"another process has checked model version {version_id} at this due time")
