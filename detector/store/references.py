"""References: made once, kept for ever, one of them active per model version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import numpy as np
from sqlalchemy import Connection, RowMapping, insert, literal, select, update
from sqlalchemy.sql.elements import ColumnElement

from detector.domain.layered import Layered
from detector.domain.slots import Slot
from detector.domain.types import Decision, Origin, Policy, Reference, ReferencePolicy
from detector.statistics.design_effect import DesignEffect, Scatter
from detector.store import locks
from detector.store.rows import summary_from_row, summary_to_row
from detector.store.tables import model_references, reference_hours, reference_policy_changes, reference_probes


def active(connection: Connection, version_id: int) -> Reference | None:
    """See `Store.reference`."""
    table = model_references.c
    return _whole(connection, (table.model_version_id == version_id) & table.active)


def _whole(connection: Connection, condition: ColumnElement[bool]) -> Reference | None:
    row = connection.execute(select(model_references).where(condition)).mappings().one_or_none()
    if row is None:
        return None
    parts = connection.execute(select(reference_probes).where(reference_probes.c.reference_id == row["id"])).mappings()
    return _reference(row, _read(parts), _slots(connection, [row["id"]]))


def with_id(connection: Connection, reference_id: int) -> Reference | None:
    """See `Store.reference_with_id`."""
    return _whole(connection, model_references.c.id == reference_id)


def listing(connection: Connection, version_id: int) -> list[Reference]:
    """See `Store.references`."""
    table = model_references.c
    query = (
        select(model_references)
        .where(table.model_version_id == version_id)
        .order_by(table.created_at.desc(), table.id.desc())
    )
    rows = connection.execute(query).mappings().all()
    slots = _slots(connection, [row["id"] for row in rows])
    return [_reference(row, Layered({}, {}), slots) for row in rows]


def save(
    connection: Connection,
    version_id: int,
    origin: Origin,
    source_version_id: int,
    start: datetime,
    end: datetime,
    n: int,
    whole: Layered,
    decision: Decision | None,
) -> int:
    """See `Store.save_reference`."""
    # Waits for another writer: an index allows one active reference, and the later one wins.
    locks.wait(connection, locks.REFERENCE, version_id)
    table = model_references
    connection.execute(update(table).where(table.c.model_version_id == version_id, table.c.active).values(active=False))
    values: dict[str, Any] = {
        "model_version_id": version_id,
        "origin": origin,
        "source_version_id": source_version_id,
        "window_start": start,
        "window_end": end,
        "n": n,
        "active": True,
        "made_by": decision.by if decision else None,
        "why": decision.why if decision else None,
        "accepts": list(decision.accepts) if decision else [],
    }
    reference_id = int(connection.execute(insert(table).values(**values).returning(table.c.id)).scalar_one())
    rows = [{"reference_id": reference_id, **row} for row in _layers(whole)]
    if rows:
        connection.execute(insert(reference_probes), rows)
    return reference_id


def save_slots(
    connection: Connection, reference_id: int, slots: Iterable[tuple[Slot, Layered]], copied_from: int | None
) -> None:
    """See `Store.save_reference`."""
    for slot, one in slots:
        key = {"reference_id": reference_id, "weekday": slot.weekday, "hour": slot.hour}
        if rows := [{**key, **row} for row in _layers(one)]:
            connection.execute(insert(reference_hours), rows)
    if copied_from is not None:
        columns = [column for column in reference_hours.c if column.name != "reference_id"]
        source = select(literal(reference_id), *columns).where(reference_hours.c.reference_id == copied_from)
        names = ["reference_id", *(column.name for column in columns)]
        connection.execute(insert(reference_hours).from_select(names, source))


def of_slot(connection: Connection, reference_id: int, slot: Slot) -> Layered:
    """See `Store.reference_slot`."""
    table = reference_hours.c
    query = select(reference_hours).where(
        table.reference_id == reference_id, table.weekday == slot.weekday, table.hour == slot.hour
    )
    return _read(connection.execute(query).mappings())


def policy(connection: Connection, model: str) -> ReferencePolicy:
    """See `Store.reference_policy`."""
    table = reference_policy_changes.c
    query = select(reference_policy_changes).where(table.model == model).order_by(table.id.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    if row is None:
        return ReferencePolicy()
    return ReferencePolicy(cast(Policy, row.policy), row.reference_id, row.made_by, row.why, row.made_at)


def set_policy(connection: Connection, model: str, chosen: ReferencePolicy) -> None:
    """See `Store.set_reference_policy`."""
    values = {"policy": chosen.policy, "reference_id": chosen.reference_id, "made_by": chosen.by, "why": chosen.why}
    connection.execute(insert(reference_policy_changes).values(model=model, **values))


def _slots(connection: Connection, reference_ids: Sequence[int]) -> dict[int, tuple[Slot, ...]]:
    """By reference, ascending; references without slots are absent."""
    table = reference_hours.c
    columns = (table.reference_id, table.weekday, table.hour)
    query = select(*columns).where(table.reference_id.in_(reference_ids)).distinct().order_by(*columns)
    found: dict[int, tuple[Slot, ...]] = {}
    for reference_id, weekday, hour in connection.execute(query):
        found[reference_id] = (*found.get(reference_id, ()), Slot(weekday, hour))
    return found


def _layers(one: Layered) -> list[dict[str, Any]]:
    return [
        {"name": name, **summary_to_row(summary), **_effect_row(one.effects.get(name))}
        for name, summary in one.summaries.items()
    ]


def _read(rows: Iterable[RowMapping]) -> Layered:
    summaries, effects = {}, {}
    for row in rows:
        summaries[row["name"]] = summary_from_row(row)
        if row["design_effect"] is not None:
            effects[row["name"]] = _effect(row)
    return Layered(summaries, effects)


def _effect_row(effect: DesignEffect | None) -> dict[str, Any]:
    scatter = None if effect is None else effect.sparsity
    return {
        "design_effect": None if effect is None else effect.values.tolist(),
        "design_estimate": None if effect is None else effect.estimate,
        "design_windows": None if effect is None else effect.windows,
        "design_requests": None if effect is None else effect.requests_per_window,
        "sparsity_variance": None if scatter is None else scatter.variance,
        "sparsity_design": None if scatter is None else scatter.design_effect,
    }


def _effect(row: RowMapping) -> DesignEffect:
    return DesignEffect(
        values=np.array(row["design_effect"], np.float64),
        estimate=row["design_estimate"],
        windows=row["design_windows"],
        requests_per_window=row["design_requests"],
        sparsity=(
            None if row["sparsity_variance"] is None else Scatter(row["sparsity_variance"], row["sparsity_design"])
        ),
    )


def _reference(row: RowMapping, whole: Layered, slots: Mapping[int, tuple[Slot, ...]]) -> Reference:
    return Reference(
        id=row["id"],
        version_id=row["model_version_id"],
        origin=cast(Origin, row["origin"]),
        source_version_id=row["source_version_id"],
        start=row["window_start"],
        end=row["window_end"],
        n=row["n"],
        created_at=row["created_at"],
        summaries=whole.summaries,
        effects=whole.effects,
        slots=slots.get(row["id"], ()),
        decision=None if row["made_by"] is None else Decision(row["made_by"], row["why"], tuple(row["accepts"])),
    )
