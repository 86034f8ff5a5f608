"""The sequential tests' state: one per model version, moved forward by compare-and-swap.

The column ``layer`` of `alarm_layers` holds a layer's name; of the family "fleet", an agent's id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Connection, delete, insert, select, update

from detector.domain.batches import Batch
from detector.domain.types import Advance, AlarmState
from detector.statistics.sequential import AlarmEvidence
from detector.store import lateness
from detector.store.errors import LostOwnership
from detector.store.tables import alarm_families, alarm_layers, alarm_states


def read(connection: Connection, version_id: int) -> AlarmState | None:
    """See `Store.alarm_state`."""
    table = alarm_states.c
    row = connection.execute(select(alarm_states).where(table.model_version_id == version_id)).one_or_none()
    if row is None:
        return None
    layers: dict[str, dict[str, Any]] = {}
    for part in connection.execute(select(alarm_layers).where(alarm_layers.c.model_version_id == version_id)):
        layers.setdefault(part.family, {})[part.layer] = np.array(part.evidence, np.float64)
    families = connection.execute(select(alarm_families).where(alarm_families.c.model_version_id == version_id))
    return AlarmState(
        reference_id=row.reference_id,
        last=Batch(row.batch_start, row.batch_end, row.n, row.windows),
        families={one.family: AlarmEvidence(layers.get(one.family, {}), one.days, one.alarm) for one in families},
    )


def advance(connection: Connection, version_id: int, step: Advance) -> None:
    """Replaces the state; raises LostOwnership where it, or a window, is no longer what the step began from."""
    table, state = alarm_states, step.state
    if step.taken is not None:
        lateness.take(connection, version_id, step.taken)
    values = {
        "reference_id": state.reference_id,
        "batch_start": state.last.start,
        "batch_end": state.last.end,
        "n": state.last.n,
        "windows": state.last.windows,
    }
    if step.before is None:
        known = connection.execute(select(table.c.batch_end).where(table.c.model_version_id == version_id)).first()
        if known is not None:
            raise LostOwnership(_moved(version_id))
        # Of two that begin at once the second meets the primary key, and the whole check is refused.
        connection.execute(insert(table).values(model_version_id=version_id, **values))
    else:
        moved = connection.execute(
            update(table)
            .where(table.c.model_version_id == version_id, table.c.batch_end == step.before)
            .values(**values)
            .returning(table.c.model_version_id)
        )
        if moved.first() is None:
            raise LostOwnership(_moved(version_id))
    connection.execute(delete(alarm_families).where(alarm_families.c.model_version_id == version_id))
    families, layers = [], []
    for family, evidence in state.families.items():
        key = {"model_version_id": version_id, "family": family}
        families.append({**key, "days": evidence.days, "alarm": evidence.alarm})
        layers += [{**key, "layer": name, "evidence": r.tolist()} for name, r in evidence.layers.items()]
    if families:
        connection.execute(insert(alarm_families), families)
    if layers:
        connection.execute(insert(alarm_layers), layers)


def _moved(version_id: int) -> str:
    return f"the evidence on model version {version_id} was moved on by another process"
