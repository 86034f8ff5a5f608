"""The probes of model versions: ids for what messages name, made where they are new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import insert

from agent.wire import Probe
from detector.store.tables import probes

ProbeKey = tuple[int, str]
"""Model version's id and layer."""
_DESCRIPTION = ("op", "tensor", "kind", "axis", "position", "exact_zero")


def probe_ids(
    connection: Connection, told: Mapping[ProbeKey, Probe], widths: Mapping[ProbeKey, int], *, describe: bool
) -> tuple[dict[ProbeKey, int], dict[ProbeKey, int | None]]:
    """Ids of all probes of the versions that ``told`` is about, and widths of those in ``told``; makes unknown ones.

    A layer's width is what is stored, else what it was first seen with by ``widths``, else what it was told to have.
    With ``describe``, what is told of known probes replaces what is stored. The caller holds the versions' merge locks.
    """
    if not told:
        return {}, {}
    known: dict[ProbeKey, int | None] = {key: widths.get(key, probe.channels) for key, probe in told.items()}
    rows = connection.execute(select(probes).where(probes.c.model_version_id.in_({key[0] for key in told})))
    ids: dict[ProbeKey, int] = {}
    for row in rows.mappings():
        key = (row["model_version_id"], row["name"])
        ids[key] = row["id"]
        if key not in told:
            continue
        known[key] = row["channels"] or known[key]
        new = _columns(told[key], known[key]) if describe else {"channels": known[key]}
        if any(row[name] != value for name, value in new.items()):
            connection.execute(update(probes).where(probes.c.id == row["id"]).values(**new))
    fresh = [
        {"model_version_id": key[0], "name": key[1], **_columns(probe, known[key])}
        for key, probe in told.items()
        if key not in ids
    ]
    if fresh:
        made = connection.execute(
            insert(probes).returning(probes.c.id, probes.c.model_version_id, probes.c.name), fresh
        )
        ids.update({(row.model_version_id, row.name): row.id for row in made})
    return ids, known


def _columns(probe: Probe, channels: int | None) -> dict[str, Any]:
    return {"channels": channels, **{name: getattr(probe, name) for name in _DESCRIPTION}}
