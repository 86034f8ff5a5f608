"""One micro-batch of one partition in one transaction: exactly once in effect.

The offset is compared and swapped first, so of two owners only one gets past; then the messages' keys, so a message
that was applied before is passed over; then windows and comparisons are merged in memory and with what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from agent.wire import Deployment, Envelope, Heartbeat
from detector.domain.agents import Heard
from detector.domain.settings import AgentLimits
from detector.domain.types import IngestResult, RefusedProbe
from detector.domain.watermark import BREAK, Ingested
from detector.store import comparisons, heartbeats, kinships, locks, merging
from detector.store.errors import LostOwnership
from detector.store.tables import deployments, ingest_keys, ingest_offsets, model_versions

NOTHING_COMPLETE = datetime.fromtimestamp(0, UTC)
"""How far a partition is complete before it was first told."""
VersionKey = tuple[str, str, str]
"""Model, version, digest."""


def next_offsets(connection: Connection, topic: str) -> dict[int, int]:
    """Partition -> next offset."""
    rows = connection.execute(
        select(ingest_offsets.c.partition, ingest_offsets.c.next_offset).where(ingest_offsets.c.topic == topic)
    )
    return {row.partition: row.next_offset for row in rows}


def recognise(connection: Connection, topic: str, topic_id: str) -> list[int]:
    """See `Store.recognise`."""
    table, values = ingest_offsets, {"topic": topic, "topic_id": topic_id}
    unnamed = update(table).where(table.c.topic == topic, table.c.topic_id.is_(None))
    connection.execute(unnamed.values(topic_id=topic_id))
    return list(connection.execute(_ANEW, values).scalars())


def complete_to(connection: Connection, topic: str) -> dict[int, datetime]:
    """See `Store.complete_to`."""
    table = ingest_offsets.c
    rows = connection.execute(
        select(table.partition, table.complete_to).where(table.topic == topic, table.complete_to.is_not(None))
    )
    return {row.partition: row.complete_to for row in rows}


def reach(connection: Connection, topic: str, offsets: Mapping[int, int], at: datetime) -> None:
    """See `Store.reach`."""
    rows = [{"t": topic, "p": number, "next": offsets[number], "at": at, "gap": BREAK} for number in sorted(offsets)]
    if rows:
        connection.execute(_REACH, rows)


def ingested(connection: Connection, version_id: int, now: datetime) -> Ingested:
    """See `Store.ingested`."""
    row = connection.execute(_INGESTED, {"id": version_id}).one_or_none()
    agents = heartbeats.of_version(connection, version_id, now)
    if row is None:
        return Ingested(None, None, None, agents)
    return Ingested(row.complete_to, row.unbroken_since, row.broken_at, agents)


_ANEW = text(
    """
    UPDATE ingest_offsets SET next_offset = 0, topic_id = :topic_id
    WHERE topic = :topic AND topic_id <> :topic_id RETURNING partition
    """
)
_REACH = text(
    """
    UPDATE ingest_offsets
    SET complete_to = :at,
        broken_at = CASE WHEN complete_to > to_timestamp(0) AND :at - complete_to > :gap
                         THEN complete_to ELSE broken_at END,
        unbroken_since = CASE WHEN complete_to IS NULL OR :at - complete_to > :gap THEN :at ELSE unbroken_since END
    WHERE topic = :t AND partition = :p AND next_offset = :next AND (complete_to IS NULL OR complete_to < :at)
    """
)
_INGESTED = text(
    """
    SELECT o.complete_to, o.unbroken_since, o.broken_at
    FROM model_versions v
    JOIN heartbeats h ON h.model = v.model AND h.version = v.version AND h.digest = v.digest
    JOIN ingest_offsets o ON o.topic = h.topic AND o.partition = h.partition
    WHERE v.id = :id ORDER BY h.heard_at DESC LIMIT 1
    """
)


def apply(
    connection: Connection,
    topic: str,
    partition: int,
    expected: int | None,
    next_offset: int,
    envelopes: Sequence[Envelope],
    heard: Sequence[Heard] | None,
    limits: AgentLimits,
) -> IngestResult:
    """See `Store.ingest`."""
    _advance(connection, topic, partition, expected, next_offset, None if heard is None else NOTHING_COMPLETE)
    messages = [envelope for envelope in envelopes if not isinstance(envelope.body, Heartbeat)]
    fresh = _unseen(connection, messages)
    refused: list[RefusedProbe] = []
    late = 0
    if fresh:
        ids = _version_ids(connection, fresh)
        for version_id in sorted(ids.values()):  # in one order everywhere, so that batches cannot deadlock
            locks.wait(connection, locks.MERGE, version_id)
        _deploy(connection, fresh, ids)
        versioned = [(ids[_version_key(envelope)], envelope) for envelope in fresh]
        merged = merging.merge_windows(connection, versioned)
        late = merged.late
        refused += merged.refused
        refused += comparisons.merge_comparisons(connection, versioned)
        refused += kinships.merge_kinships(connection, versioned)
    told = [_claimed(envelope) for envelope in envelopes] if heard is None else heard
    heartbeats.record(connection, topic, partition, envelopes, told, limits)
    applied = len(fresh) + len(envelopes) - len(messages)
    return IngestResult(applied, len(messages) - len(fresh), tuple(refused), late)


def _claimed(envelope: Envelope) -> Heard:
    """When a message was sent, by its agent's clock."""
    return Heard(merging.moment(envelope.end_ms))


def _advance(
    connection: Connection,
    topic: str,
    partition: int,
    expected: int | None,
    next_offset: int,
    complete: datetime | None,
) -> None:
    if expected is None:
        changed = connection.execute(
            insert(ingest_offsets)
            .values(topic=topic, partition=partition, next_offset=next_offset, complete_to=complete)
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
        at = merging.moment(envelope.start_ms)
        key = _version_key(envelope)
        first[key] = min(at, first.get(key, at))
    table = model_versions
    columns = (table.c.model, table.c.version, table.c.digest)
    query = select(table.c.id, table.c.first_seen, *columns).where(tuple_(*columns).in_(list(first)))
    rows = connection.execute(query).all()
    known = {(row.model, row.version, row.digest) for row in rows}
    # Only what is new: an insert that meets a conflict takes an id all the same, and they would run out.
    fresh = [
        {"model": key[0], "version": key[1], "digest": key[2], "first_seen": first[key]}
        for key in sorted(first.keys() - known)
    ]
    if fresh:
        connection.execute(insert(table).on_conflict_do_nothing(), fresh)
        rows = connection.execute(query).all()
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
