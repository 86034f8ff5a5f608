"""One micro-batch of one partition in one transaction: exactly once in effect.

The offset is compared and swapped first, so of two owners only one gets past; then the messages' keys, so a message
that was applied before is passed over; then windows and comparisons are merged in memory and with what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from agent.wire import Deployment, Envelope
from detector.domain.types import IngestResult, RefusedProbe
from detector.store import comparisons, locks, merging
from detector.store.errors import LostOwnership
from detector.store.tables import deployments, ingest_keys, ingest_offsets, model_versions

VersionKey = tuple[str, str, str]
"""Model, version, digest."""


def next_offsets(connection: Connection, topic: str) -> dict[int, int]:
    """Partition -> next offset."""
    rows = connection.execute(
        select(ingest_offsets.c.partition, ingest_offsets.c.next_offset).where(ingest_offsets.c.topic == topic)
    )
    return {row.partition: row.next_offset for row in rows}


def apply(
    connection: Connection,
    topic: str,
    partition: int,
    expected: int | None,
    next_offset: int,
    envelopes: Sequence[Envelope],
) -> IngestResult:
    """See `Store.ingest`."""
    _advance(connection, topic, partition, expected, next_offset)
    fresh = _unseen(connection, envelopes)
    refused: list[RefusedProbe] = []
    if fresh:
        ids = _version_ids(connection, fresh)
        for version_id in sorted(ids.values()):  # in one order everywhere, so that batches cannot deadlock
            locks.wait(connection, locks.MERGE, version_id)
        _deploy(connection, fresh, ids)
        versioned = [(ids[_version_key(envelope)], envelope) for envelope in fresh]
        refused += merging.merge_windows(connection, versioned)
        refused += comparisons.merge_comparisons(connection, versioned)
    return IngestResult(applied=len(fresh), duplicates=len(envelopes) - len(fresh), refused=tuple(refused))


def _advance(connection: Connection, topic: str, partition: int, expected: int | None, next_offset: int) -> None:
    if expected is None:
        changed = connection.execute(
            insert(ingest_offsets)
            .values(topic=topic, partition=partition, next_offset=next_offset)
            .on_conflict_do_nothing()
            .returning(ingest_offsets.c.next_offset)
        )
    else:
        changed = connection.execute(
            update(ingest_offsets)
            .where(
                ingest_offsets.c.topic == topic,
                ingest_offsets.c.partition == partition,
                ingest_offsets.c.next_offset == expected,
            )
            .values(next_offset=next_offset)
            .returning(ingest_offsets.c.next_offset)
        )
    if changed.first() is None:
        raise LostOwnership(f"{topic}/{partition} is no longer at offset {expected}: another process ingests it")


def _unseen(connection: Connection, envelopes: Sequence[Envelope]) -> list[Envelope]:
    """Of each key not stored yet, the first envelope; the keys are stored with it."""
    by_key: dict[tuple[str, int, int], Envelope] = {}
    for envelope in envelopes:
        by_key.setdefault((envelope.agent_id, envelope.boot_epoch, envelope.seq), envelope)
    if not by_key:
        return []
    columns = ("agent_id", "boot_epoch", "seq")
    # Sorted, so that two transactions with the same keys wait for each other instead of deadlocking.
    rows = [dict(zip(columns, key, strict=True)) for key in sorted(by_key)]
    stored = connection.execute(
        insert(ingest_keys).on_conflict_do_nothing().returning(*(ingest_keys.c[name] for name in columns)), rows
    )
    new = {tuple(row) for row in stored}
    return [envelope for key, envelope in by_key.items() if key in new]


def _version_key(envelope: Envelope) -> VersionKey:
    return envelope.model, envelope.version, envelope.digest


def _version_ids(connection: Connection, envelopes: Iterable[Envelope]) -> dict[VersionKey, int]:
    first: dict[VersionKey, datetime] = {}
    for envelope in envelopes:
        body = envelope.body
        at = merging.moment(body.at_ms if isinstance(body, Deployment) else body.start_ms)
        key = _version_key(envelope)
        first[key] = min(at, first.get(key, at))
    table = model_versions
    connection.execute(
        insert(table).on_conflict_do_nothing(),
        [{"model": key[0], "version": key[1], "digest": key[2], "first_seen": first[key]} for key in sorted(first)],
    )
    columns = (table.c.model, table.c.version, table.c.digest)
    rows = connection.execute(select(table.c.id, table.c.first_seen, *columns).where(tuple_(*columns).in_(list(first))))
    ids: dict[VersionKey, int] = {}
    for row in sorted(rows, key=lambda row: row.id):
        key = (row.model, row.version, row.digest)
        ids[key] = row.id
        if first[key] < row.first_seen:  # messages may arrive out of order
            connection.execute(
                update(table).where(table.c.id == row.id, table.c.first_seen > first[key]).values(first_seen=first[key])
            )
    return ids


def _deploy(connection: Connection, envelopes: Iterable[Envelope], ids: dict[VersionKey, int]) -> None:
    rows = [
        {
            "model_version_id": ids[_version_key(envelope)],
            "agent_id": envelope.agent_id,
            "provider": envelope.body.provider,
            "at": merging.moment(envelope.body.at_ms),
        }
        for envelope in envelopes
        if isinstance(envelope.body, Deployment)
    ]
    if rows:
        connection.execute(insert(deployments).on_conflict_do_nothing(), rows)
