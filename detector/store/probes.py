"""The probes of model versions: ids for what messages name, made where they are new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import insert

from agent.wire import Probe
from detector.store.errors import StoreRefused
from detector.store.tables import probes

ProbeKey = tuple[int, str]
"""Model version's id and layer."""
_DESCRIPTION = ("op", "tensor", "kind", "axis", "position", "exact_zero")


def probe_ids(
    connection: Connection, told: Mapping[ProbeKey, Probe], widths: Mapping[ProbeKey, int], *, describe: bool
) -> dict[ProbeKey, int]:
    """Ids of all probes of the versions that ``told`` is about; makes those that are unknown.

    ``widths`` are the channels that layers were seen with. With ``describe``, what is told of known probes replaces
    what is stored. The caller holds the versions' merge locks. Raises StoreRefused where a layer has another width
    than before.
    """
    if not told:
        return {}
    rows = connection.execute(select(probes).where(probes.c.model_version_id.in_({key[0] for key in told})))
    ids: dict[ProbeKey, int] = {}
    for row in rows.mappings():
        key = (row["model_version_id"], row["name"])
        ids[key] = row["id"]
        if key not in told:
            continue
        width = widths.get(key)
        if width is not None and row["channels"] not in (None, width):
            raise StoreRefused(other_width(key[1], width, row["channels"]))
        new = _columns(told[key], row["channels"] or width or told[key].channels)
        if describe and any(row[name] != value for name, value in new.items()):
            connection.execute(update(probes).where(probes.c.id == row["id"]).values(**new))
    fresh = [
        {"model_version_id": key[0], "name": key[1], **_columns(probe, widths.get(key, probe.channels))}
        for key, probe in told.items()
        if key not in ids
    ]
    if fresh:
        made = connection.execute(
            insert(probes).returning(probes.c.id, probes.c.model_version_id, probes.c.name), fresh
        )
        ids.update({(row.model_version_id, row.name): row.id for row in made})
    return ids


def other_width(layer: str, channels: int, before: int) -> str:
    """Why a message is refused."""
    return f"layer {layer} has {channels} channels here and {before} elsewhere in the same model version"


def _columns(probe: Probe, channels: int | None) -> dict[str, Any]:
    return {"channels": channels, **{name: getattr(probe, name) for name in _DESCRIPTION}}
