"""Runbook versions, and alerts pinned to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, func, not_, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from detector.domain.holds import Hold, OpenAlert, Settled
from detector.domain.runbook import Runbook
from detector.domain.types import AlertRow
from detector.store.tables import alerts as alert_table
from detector.store.tables import runbooks as runbook_table

_UPDATED = (
    "status", "severity", "model", "version", "layer", "cause", "ends_at", "labels", "annotations", "seen_at",
    "held_back", "ended_by",
)  # fmt: skip
"""By a later notice; what held the alert back stays."""


def register_runbook(connection: Connection, runbook: Runbook) -> None:
    """See `Store.register_runbook`."""
    connection.execute(insert(runbook_table).values(**asdict(runbook)).on_conflict_do_nothing())


def runbook(connection: Connection, name: str, version: int) -> Runbook | None:
    """See `Store.runbook`."""
    query = _runbooks().where(runbook_table.c.name == name, runbook_table.c.version == version)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Runbook(**row)


def runbooks(connection: Connection) -> list[Runbook]:
    """See `Store.runbooks`."""
    rows = connection.execute(_runbooks().order_by(runbook_table.c.name, runbook_table.c.version))
    return [Runbook(**row) for row in rows.mappings()]


def _runbooks() -> Select[Any]:
    return select(*(runbook_table.c[field.name] for field in fields(Runbook)))


def save(connection: Connection, alert: AlertRow) -> None:
    """See `Store.save_alert`."""
    values = {field.name: getattr(alert, field.name) for field in fields(AlertRow)}
    values |= {"labels": dict(alert.labels), "annotations": dict(alert.annotations)}
    values |= {"seen_at": alert.received_at, "held_back": "", "holds": []}
    values |= {"ended_by": "webhook" if alert.status == "resolved" else ""}
    statement = insert(alert_table).values(**values)
    new, old = statement.excluded, alert_table.c
    statement = statement.on_conflict_do_update(
        index_elements=["fingerprint", "starts_at"],
        set_={
            **{name: new[name] for name in _UPDATED},
            # A check constraint has both or neither, so what was pinned first stays whole.
            "runbook_name": func.coalesce(old.runbook_name, new.runbook_name),
            "runbook_version": func.coalesce(old.runbook_version, new.runbook_version),
        },
        # What a reconciliation ended because Alertmanager had forgotten it may still be told of as firing.
        where=not_(and_(old.status == "resolved", old.ended_by == "webhook", new.status == "firing")),
    )
    connection.execute(statement)


def listing(connection: Connection, since: datetime) -> list[AlertRow]:
    """See `Store.alerts`."""
    table = alert_table.c
    query = select(*(table[field.name] for field in fields(AlertRow)))
    query = query.where(or_(table.starts_at >= since, table.ends_at.is_(None), table.ends_at >= since))
    return [AlertRow(**row) for row in connection.execute(query.order_by(table.starts_at, table.id)).mappings()]


def opened(connection: Connection, since: datetime) -> list[OpenAlert]:
    """See `Store.open_alerts`."""
    table = alert_table.c
    query = select(*(table[field.name] for field in fields(OpenAlert)))
    query = query.where(or_(table.status == "firing", and_(table.ended_by == "reconciled", table.ends_at >= since)))
    rows = connection.execute(query.order_by(table.id)).mappings()
    return [OpenAlert(**{**row, "holds": tuple(_hold(item) for item in row["holds"])}) for row in rows]


def settle(connection: Connection, settled: Sequence[Settled]) -> None:
    """See `Store.settle_alerts`."""
    table = alert_table.c
    for one in settled:
        values: dict[str, Any] = {
            "status": "firing" if one.ends_at is None else "resolved",
            "ends_at": one.ends_at,
            "held_back": one.held_back,
            "holds": [{**asdict(hold), "since": hold.since.isoformat()} for hold in one.holds],
            "ended_by": "" if one.ends_at is None else "reconciled",
        }
        if one.seen_at is not None:
            values["seen_at"] = one.seen_at
        # A notice that came meanwhile knows better.
        told = and_(table.status == "resolved", table.ended_by == "webhook")
        connection.execute(update(alert_table).where(table.id == one.id, not_(told)).values(**values))


def _hold(item: Mapping[str, Any]) -> Hold:
    return Hold(**{**item, "since": datetime.fromisoformat(item["since"])})
