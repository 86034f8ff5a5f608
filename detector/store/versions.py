"""Model versions, their deployments and probes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, RowMapping, Select, func, select, text

from agent.wire import Probe, ProbeKind
from detector.domain.types import ModelVersion
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


def current(connection: Connection) -> list[ModelVersion]:
    """See `Store.current_versions`."""
    table = deployments
    rank = func.row_number().over(
        partition_by=(table.c.agent_id, model_versions.c.model), order_by=(table.c.at.desc(), table.c.id.desc())
    )
    ranked = (
        select(table.c.model_version_id, rank.label("rank"))
        .join(model_versions, model_versions.c.id == table.c.model_version_id)
        .subquery()
    )
    query = _select().where(model_versions.c.id.in_(select(ranked.c.model_version_id).where(ranked.c.rank == 1)))
    rows = connection.execute(query.order_by(model_versions.c.model, model_versions.c.first_seen, model_versions.c.id))
    return _versions(rows.mappings().all())


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
    newest = "SELECT to_regclass('reference_policies') IS NOT NULL AND to_regclass('check_turns') IS NOT NULL"
    if not connection.execute(text(newest)).scalar_one():
        raise StoreError("the database has no reluscope schema, or an old one: run `reluscope migrate`")
