"""Checks and their findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, insert, select
from sqlalchemy.sql.elements import ColumnElement

from detector.domain.finding import Agreement, ChannelEvidence, Check, Finding, ProbeAgreement
from detector.domain.types import StoredCheck
from detector.store.rows import from_json, to_json
from detector.store.tables import checks as check_table
from detector.store.tables import findings as finding_table
from detector.store.tables import model_versions

_PARTS = ("layers", "findings", "alarms", "comparisons")
_CHECK = tuple(field.name for field in fields(Check) if field.name not in _PARTS)
_JSON = ("channels", "evidence", "details")
_FINDING = tuple(field.name for field in fields(Finding) if field.name not in _JSON)


def save(connection: Connection, check: Check, runbook_versions: Mapping[str, int]) -> int:
    """See `Store.save_check`."""
    values = {name: getattr(check, name) for name in _CHECK}
    values |= {
        "layers": to_json(check.layers),
        "alarms": to_json(check.alarms),
        "comparisons": to_json([asdict(one) for one in check.comparisons]),
    }
    statement = insert(check_table).values(**values).returning(check_table.c.id)
    check_id = int(connection.execute(statement).scalar_one())
    rows = [_finding_row(check_id, finding, runbook_versions) for finding in check.findings]
    if rows:
        connection.execute(insert(finding_table), rows)
    return check_id


def latest(connection: Connection, since: datetime) -> list[StoredCheck]:
    """See `Store.latest_checks`."""
    table = check_table.c
    newest_first = (table.finished_at.desc(), table.id.desc())
    rank = func.row_number().over(partition_by=table.model_version_id, order_by=newest_first)
    ranked = select(table.id, rank.label("rank")).where(table.finished_at >= since).subquery()
    query = _select(table.id.in_(select(ranked.c.id).where(ranked.c.rank == 1)))
    return _read(connection, query.order_by(table.model_version_id))


def of_version(connection: Connection, version_id: int, since: datetime, limit: int) -> list[StoredCheck]:
    """See `Store.checks`."""
    table = check_table.c
    query = _select(table.model_version_id == version_id, table.finished_at >= since)
    return _read(connection, query.order_by(table.finished_at.desc(), table.id.desc()).limit(limit))


def _select(*conditions: ColumnElement[bool]) -> Select[Any]:
    versions = model_versions.c
    query = select(check_table, versions.model, versions.version)
    return query.join(model_versions, versions.id == check_table.c.model_version_id).where(*conditions)


def _read(connection: Connection, query: Select[Any]) -> list[StoredCheck]:
    rows = connection.execute(query).mappings().all()
    findings: dict[int, list[Finding]] = {row["id"]: [] for row in rows}
    table = finding_table.c
    parts = select(finding_table).where(table.check_id.in_(list(findings))).order_by(table.check_id, table.id)
    for part in connection.execute(parts).mappings() if findings else ():
        findings[part["check_id"]].append(_finding(part))
    return [
        StoredCheck(
            id=row["id"],
            model=row["model"],
            version=row["version"],
            check=Check(
                **{name: row[name] for name in _CHECK},
                layers=row["layers"],
                findings=tuple(findings[row["id"]]),
                alarms=from_json(row["alarms"]),
                comparisons=tuple(_agreement(item) for item in row["comparisons"]),
            ),
        )
        for row in rows
    ]


def _finding_row(check_id: int, finding: Finding, runbook_versions: Mapping[str, int]) -> dict[str, Any]:
    version = runbook_versions.get(finding.alert)
    return {
        "check_id": check_id,
        **{name: getattr(finding, name) for name in _FINDING},
        "channels": [int(channel) for channel in finding.channels],
        "evidence": to_json([asdict(item) for item in finding.evidence]),
        "details": to_json(finding.details),
        "runbook_name": None if version is None else finding.alert,
        "runbook_version": version,
    }


def _finding(row: RowMapping) -> Finding:
    return Finding(
        **{name: row[name] for name in _FINDING},
        channels=tuple(row["channels"]),
        evidence=tuple(ChannelEvidence(**_evidence(item)) for item in row["evidence"]),
        details=from_json(row["details"]),
    )


def _evidence(item: dict[str, Any]) -> dict[str, Any]:
    texts = ("label", "text")  # which may read "NaN" and mean it
    return {key: value if key in texts else from_json(value) for key, value in item.items()}


def _agreement(item: dict[str, Any]) -> Agreement:
    # Numbers alone: a layer may be named "NaN" and mean it.
    probes = ({**probe, "sqnr_db": from_json(probe["sqnr_db"])} for probe in item["probes"])
    return Agreement(**{**item, "probes": tuple(ProbeAgreement(**probe) for probe in probes)})
