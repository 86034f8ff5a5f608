"""Kinship: what agents measured of a version beside the model that it replaced, added up by layer.

The caller of `merge_kinships` holds the model versions' merge locks, so that adding to a row counts every message once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from agent.wire import Envelope, Kinship, LayerKinship, merge_layers
from detector.domain.types import RefusedProbe
from detector.store.tables import KINSHIP_SUMS, kinships

_KEY = ("model_version_id", "former_digest", "layer")


def merge_kinships(connection: Connection, batch: Sequence[tuple[int, Envelope]]) -> list[RefusedProbe]:
    """Adds all of a batch, each with its model version's id; layers of another width than before are left out, and
    returned."""
    refused = []
    for version_id, envelope in batch:
        body = envelope.body
        if not isinstance(body, Kinship):
            continue
        known, rows = read(connection, version_id, body.former_digest), []
        for one in body.layers:
            before = known.get(one.name, one)
            if len(before.served) != len(one.served):
                widths = (len(one.served), len(before.served))
                refused.append(RefusedProbe(envelope.model, envelope.version, one.name, *widths))
                continue
            rows.append(_row(version_id, body.former_digest, one if before is one else merge_layers(before, one)))
        if rows:
            _write(connection, rows)
    return refused


def read(connection: Connection, version_id: int, former_digest: str) -> dict[str, LayerKinship]:
    """See `Store.kinship`."""
    table = kinships.c
    query = select(kinships).where(table.model_version_id == version_id, table.former_digest == former_digest)
    return {
        row["layer"]: LayerKinship(
            row["layer"],
            row["n"],
            **{name: np.array(row[name], np.float64) for name in KINSHIP_SUMS},
            broken=row["broken"],
        )
        for row in connection.execute(query.order_by(table.layer)).mappings()
    }


def _row(version_id: int, former_digest: str, one: LayerKinship) -> dict[str, Any]:
    sums = {name: getattr(one, name).tolist() for name in KINSHIP_SUMS}
    return {
        "model_version_id": version_id,
        "former_digest": former_digest,
        "layer": one.name,
        **sums,
        "n": one.n,
        "broken": one.broken,
    }


def _write(connection: Connection, rows: list[dict[str, Any]]) -> None:
    statement = insert(kinships)
    new = {name: statement.excluded[name] for name in ("n", "broken", *KINSHIP_SUMS)}
    connection.execute(statement.on_conflict_do_update(index_elements=list(_KEY), set_=new), rows)
