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
from detector.store.errors import StoreRefused
from detector.store.tables import KINSHIP_SUMS, kinships

_KEY = ("model_version_id", "former_digest", "layer")


def merge_kinships(connection: Connection, batch: Sequence[tuple[int, Envelope]]) -> None:
    """Adds all of a batch, each with its model version's id; raises StoreRefused where widths differ."""
    for version_id, envelope in batch:
        body = envelope.body
        if isinstance(body, Kinship):
            known = read(connection, version_id, body.former_digest)
            rows = [_row(version_id, body.former_digest, _added(known.get(one.name), one)) for one in body.layers]
            if rows:
                _write(connection, rows)


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


def _added(known: LayerKinship | None, one: LayerKinship) -> LayerKinship:
    try:
        return one if known is None else merge_layers(known, one)
    except ValueError as error:
        raise StoreRefused(str(error)) from error


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
