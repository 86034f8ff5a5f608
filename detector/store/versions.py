"""Model versions, their deployments and probes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, RowMapping, Select, func, select, text

from agent.wire import Probe, ProbeKind
from detector.domain.agents import superseded_ids
from detector.domain.types import ModelVersion, Progress
from detector.store import heartbeats
from detector.store.errors import StoreError
from detector.store.tables import comparison_sources, comparisons, deployments, model_versions, windows
from detector.store.tables import probes as probe_table


def _select() -> Select[Any]:
    table = model_versions
    # Scalar subqueries, as each is answered by one end of an index.
    last = select(func.max(windows.c.window_end)).where(windows.c.model_version_id == table.c.id)
    deployed = select(func.max(deployments.c.at)).where(deployments.c.model_version_id == table.c.id)
    return select(
        *table.c,
        last.correlate(table).scalar_subquery().label("last_window_end"),
        deployed.correlate(table).scalar_subquery().label("deployed_at"),
    )


def _versions(rows: Sequence[RowMapping]) -> list[ModelVersion]:
    return [ModelVersion(**row) for row in rows]


def with_windows(connection: Connection, since: datetime) -> list[ModelVersion]:
    """See `Store.versions`."""
    found = _select().subquery()
    query = select(found).where(found.c.last_window_end > since)
    rows = connection.execute(query.order_by(found.c.model, found.c.first_seen, found.c.id))
    return _versions(rows.mappings().all())


def with_comparisons(connection: Connection, since: datetime) -> list[tuple[ModelVersion, datetime]]:
    """See `Store.compared_versions`."""
    table = comparisons.c
    last = (
        select(comparison_sources.c.model_version_id.label("id"), func.max(table.window_end).label("last"))
        .join(comparison_sources, comparison_sources.c.id == table.source_id)
        # The bound on window_start lets Postgres skip former days: a comparison's window is far shorter than a day.
        .where(table.window_end > since, table.window_start > since - timedelta(days=1))
        .group_by(comparison_sources.c.model_version_id)
        .subquery()
    )
    ends = {row.id: row.last for row in connection.execute(select(last))}
    rows = connection.execute(_select().where(model_versions.c.id.in_(ends)).order_by(model_versions.c.id))
    return [(version, ends[version.id]) for version in _versions(rows.mappings().all())]


def newest(connection: Connection, model: str, version: str | None) -> ModelVersion | None:
    """See `Store.model_version`."""
    found = _select().subquery()
    query = select(found).where(found.c.model == model)
    if version is not None:
        query = query.where(found.c.version == version)
    age = func.coalesce(found.c.deployed_at, found.c.first_seen)
    rows = connection.execute(query.order_by(age.desc(), found.c.id.desc()).limit(1))
    return next(iter(_versions(rows.mappings().all())), None)


def current(connection: Connection, now: datetime) -> list[ModelVersion]:
    """See `Store.current_versions`."""
    agents = [one for one in heartbeats.states(connection, now) if one.model_version_id is not None]
    ids = {one.model_version_id for one in agents} - superseded_ids(agents)
    query = _select().where(model_versions.c.id.in_(ids))
    rows = connection.execute(query.order_by(model_versions.c.model, model_versions.c.first_seen, model_versions.c.id))
    return _versions(rows.mappings().all())


_FORGET = text(
    """
    DELETE FROM deployments USING (
        SELECT id, at, row_number() OVER first AS nth, row_number() OVER last AS nth_last
        FROM deployments
        WINDOW first AS (PARTITION BY model_version_id ORDER BY at, id),
               last AS (PARTITION BY model_version_id ORDER BY at DESC, id DESC)
    ) d
    WHERE deployments.id = d.id AND d.at < :oldest AND d.nth > 1 AND d.nth_last > 1
    """
)


def forget_deployments(connection: Connection, oldest: datetime) -> None:
    """Of deployments before ``oldest``, keeps each version's first and last: pods come and go, versions stay."""
    connection.execute(_FORGET, {"oldest": oldest})


_PROGRESS = text(
    "SELECT model, version, complete_to, checked, passed_over, late FROM ingest_progress "
    "WHERE model_version_id IN (SELECT model_version_id FROM version_progress) OR complete_to IS NOT NULL "
    "ORDER BY model, version, model_version_id"
)


def progress(connection: Connection) -> list[Progress]:
    """See `Store.progress`."""
    return [Progress(**row) for row in connection.execute(_PROGRESS).mappings()]


_PREVIOUS = text(
    """
    WITH arrivals AS (
        SELECT v.id, v.model, coalesce(d.at, v.first_seen) AS at
        FROM model_versions v LEFT JOIN deployments d ON d.model_version_id = v.id
        WHERE v.model = (SELECT model FROM model_versions WHERE id = :id)
    )
    SELECT id FROM arrivals
    WHERE id <> :id AND at < (SELECT min(at) FROM arrivals WHERE id = :id)
    ORDER BY at DESC, id DESC LIMIT 1
    """
)
"""What came back by a rollback counts as deployed again; a redeployment of the version asked about does not."""


def previous(connection: Connection, version_id: int) -> ModelVersion | None:
    """See `Store.previous_version`."""
    found = connection.execute(_PREVIOUS, {"id": version_id}).scalar_one_or_none()
    if found is None:
        return None
    rows = connection.execute(_select().where(model_versions.c.id == found))
    return _versions(rows.mappings().all())[0]


def probes(connection: Connection, version_id: int) -> list[Probe]:
    """See `Store.probes`."""
    table = probe_table.c
    rows = connection.execute(
        select(probe_table).where(table.model_version_id == version_id).order_by(table.position, table.id)
    )
    return [
        Probe(
            name=row.name,
            op=row.op,
            tensor=row.tensor,
            channels=row.channels,
            axis=row.axis,
            kind=cast(ProbeKind, row.kind),
            position=row.position,
            exact_zero=row.exact_zero,
        )
        for row in rows
    ]


def now(connection: Connection) -> datetime:
    """See `Store.now`."""
    return cast(datetime, connection.execute(select(func.clock_timestamp())).scalar_one())


def probe_schema(connection: Connection) -> None:
    """Raises StoreError where the newest view or the newest table is not there."""
    newest = ("reference_policies", "agent_states", "check_turns")
    there = " AND ".join(f"to_regclass('{name}') IS NOT NULL" for name in newest)
    if not connection.execute(text(f"SELECT {there}")).scalar_one():
        raise StoreError("the database has no reluscope schema, or an old one: run `reluscope migrate`")
