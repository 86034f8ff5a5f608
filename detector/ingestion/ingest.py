"""From records to Postgres: decode, set aside what cannot be used, apply the rest in one transaction.

Two kinds of trouble are kept apart. A message that is wrong will be wrong for ever: it goes to the dead letters with
its provenance, before the transaction that moves the offset past it, so that a crash in between repeats the letter and
never loses it. Infrastructure that fails will come back: `RetryLater`, and nothing is set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from agent.wire import Envelope, WireError, decode
from detector.domain.agents import Heard
from detector.domain.settings import AgentLimits
from detector.domain.types import RefusedProbe
from detector.ingestion import clocks
from detector.ingestion.clocks import Between
from detector.ingestion.cuts import Mark
from detector.ingestion.plausible import Implausible, check
from detector.ingestion.records import Headers, Record, RetryLater
from detector.metrics import DetectorMetrics
from detector.store import IngestResult, LostOwnership, StoreError, StoreRefused

log = structlog.get_logger()

MAX_TEXT = 500
MOST_CLOCKS = 10_000
"""Agents whose clocks' errors are kept in memory; Postgres has all."""
MOST_NAMED = 10
DEFAULT_LIMITS = AgentLimits()
_MOST_SAID = 1024


class DeadLetterBox(Protocol):
    """Where unusable messages go."""

    def publish(self, raw: bytes | None, headers: Headers, key: bytes | None = None) -> None:
        """Returns when the broker has it; raises RetryLater."""


class IngestStore(Protocol):
    """The part of the store that ingest needs."""

    def next_offsets(self, topic: str) -> dict[int, int]: ...
    def recognise(self, topic: str, topic_id: str) -> list[int]: ...
    def complete_to(self, topic: str) -> dict[int, datetime]: ...
    def clock_errors(self) -> dict[str, float]: ...
    def reach(self, topic: str, offsets: Mapping[int, int], at: datetime) -> None: ...
    def ingest(
        self,
        topic: str,
        partition: int,
        expected_offset: int | None,
        next_offset: int,
        envelopes: Sequence[Envelope],
        heard: Sequence[Heard],
        limits: AgentLimits,
    ) -> IngestResult: ...


@dataclass(frozen=True, slots=True)
class Usable:
    """A record that can be applied, with its times put right, and when its agent was heard by it."""

    record: Record
    envelope: Envelope
    heard: Heard


class IngestHandler:
    """Applies micro-batches; for one consumer, in one thread."""

    def __init__(
        self,
        store: IngestStore,
        topic: str,
        dead_letters: DeadLetterBox,
        metrics: DetectorMetrics,
        clock: Callable[[], datetime],
        limits: AgentLimits = DEFAULT_LIMITS,
    ) -> None:
        self._limits = limits
        self._marks: dict[int, Mark] = {}
        self._clock_errors: dict[str, float] = {}
        self._store, self._topic, self._dead_letters = store, topic, dead_letters
        self._metrics, self._clock = metrics, clock
        self._topic_id: str | None = None
        self._expected: dict[int, int | None] = {}
        self._set_aside: set[tuple[int, int]] = set()
        self._said: set[RefusedProbe] = set()

    def assigned(self, partitions: Iterable[int], topic_id: str | None = None) -> dict[int, int | None]:
        """Takes over these partitions and no others; from which offset on each is to be read (None: its beginning).

        ``topic_id`` is the topic's own, where the broker tells: of a topic that was deleted and made again offsets
        begin anew. Raises RetryLater.
        """
        self._topic_id = topic_id
        try:
            self._recognise()
            known = self._store.next_offsets(self._topic)
            complete = self._store.complete_to(self._topic)
            self._clock_errors = self._store.clock_errors()
        except StoreError as error:
            raise RetryLater("postgres", str(error)) from error
        self._expected = {partition: known.get(partition) for partition in partitions}
        self._set_aside = {letter for letter in self._set_aside if letter[0] in self._expected}
        offsets = {p: end for p, end in self._expected.items() if end is not None}
        self._marks = {p: Mark(complete[p], end) for p, end in offsets.items() if p in complete}
        return dict(self._expected)

    def _recognise(self) -> None:
        if self._topic_id is None:
            return
        if anew := self._store.recognise(self._topic, self._topic_id):
            log.warning("ingest.topic_made_anew", topic=self._topic, topic_id=self._topic_id, partitions=sorted(anew))

    def reached(self, marks: Mapping[int, Mark]) -> None:
        """All that assigned partitions held at a moment is applied; raises RetryLater."""
        by_moment: dict[datetime, dict[int, int]] = {}
        for partition, mark in marks.items():
            if (offset := self._expected.get(partition)) is not None:
                by_moment.setdefault(mark.at, {})[partition] = offset
        try:
            for at, offsets in by_moment.items():
                self._store.reach(self._topic, offsets, at)
        except StoreError as error:
            raise RetryLater("postgres", str(error)) from error
        self._marks |= {partition: mark for partition, mark in marks.items() if partition in self._expected}

    def handle(self, partition: int, records: Sequence[Record]) -> None:
        """Applies consecutive records of an assigned partition; raises RetryLater, with nothing half applied."""
        usable = [one for record in records if (one := self._read(partition, record)) is not None]
        end = records[-1].offset + 1
        try:
            self._apply(partition, end, usable)
        except StoreRefused:
            self._one_by_one(partition, end, usable)
        self._set_aside = {letter for letter in self._set_aside if letter[0] != partition}

    def _read(self, partition: int, record: Record) -> Usable | None:
        now = self._clock()
        try:
            envelope = decode(record.value or b"")
            known = self._clock_errors.get(envelope.agent_id)
            heard = clocks.heard(envelope, self._arrival(partition, record, now), known)
            envelope = clocks.corrected(envelope, heard.clock_error)
            check(envelope, now)
        except WireError as error:
            self._dead(partition, record, "undecodable", error)
        except Implausible as error:
            self._dead(partition, record, "implausible", error)
        else:
            self._remember(envelope.agent_id, known, heard.clock_error)
            return Usable(record, envelope, heard)
        return None

    def _arrival(self, partition: int, record: Record, now: datetime) -> Between:
        mark = self._marks.get(partition)
        earliest = mark.at if mark is not None and record.offset >= mark.end else None
        if record.appended is not None and (earliest is None or earliest <= record.appended) and record.appended <= now:
            return Between(record.appended, record.appended)
        return Between(earliest, max(now, earliest or now))

    def _remember(self, agent_id: str, known: float | None, error: float | None) -> None:
        if error is None or error == known:
            return
        if len(self._clock_errors) >= MOST_CLOCKS:  # right clocks need no remembering
            off = {name: e for name, e in self._clock_errors.items() if abs(e) > clocks.TOLERANCE_SECONDS}
            self._clock_errors = dict(list(off.items())[-MOST_CLOCKS // 2 :])
        self._clock_errors[agent_id] = error
        if max(abs(error), abs(known or 0.0)) > clocks.TOLERANCE_SECONDS:
            log.warning("ingest.clock_error", agent_id=agent_id, seconds=round(error, 1), before=known)

    def _one_by_one(self, partition: int, end: int, usable: Iterable[Usable]) -> None:
        """Finds the messages of a refused batch that Postgres does not take, and applies the others."""
        for one in usable:
            try:
                self._apply(partition, one.record.offset + 1, [one])
            except StoreRefused as error:
                self._dead(partition, one.record, "refused", error)
        self._apply(partition, end, [])

    def _apply(self, partition: int, end: int, usable: Sequence[Usable]) -> None:
        envelopes, heard = [one.envelope for one in usable], [one.heard for one in usable]
        expected = self._expected[partition]
        try:
            result = self._store.ingest(self._topic, partition, expected, end, envelopes, heard, self._limits)
            if expected is None:
                self._recognise()
        except StoreRefused:
            raise
        except (ValueError, ArithmeticError) as error:
            # Content that nobody foresaw must not stop its partition for ever. The type alone: texts may quote values.
            raise StoreRefused(f"{type(error).__name__} in applying it") from error
        except LostOwnership as error:
            raise RetryLater("lost_ownership", str(error)) from error
        except StoreError as error:
            raise RetryLater("postgres", str(error)) from error
        self._expected[partition] = end
        self._metrics.ingest_applied(result.applied, result.duplicates)
        if result.late:
            agents = sorted({envelope.agent_id for envelope in envelopes})[:MOST_NAMED]
            log.warning("ingest.late", partition=partition, requests=result.late, agents=agents)
        self._refused(result.refused)
        log.debug(
            "ingest.batch_applied",
            partition=partition,
            next_offset=end,
            applied=result.applied,
            duplicates=result.duplicates,
        )

    def _refused(self, probes: Iterable[RefusedProbe]) -> None:
        """Counts the layers that were left out, and says each once."""
        for probe in probes:
            self._metrics.refused_probes.labels("width").inc()
            if probe in self._said:
                continue
            if len(self._said) >= _MOST_SAID:
                self._said.clear()
            self._said.add(probe)
            log.warning(
                "ingest.probe_refused",
                model=probe.model,
                version=probe.version,
                layer=probe.layer,
                channels=probe.channels,
                known=probe.known,
                hint="its width changes from message to message; leave it out with --probes at the agents",
            )

    def _dead(self, partition: int, record: Record, reason: str, error: Exception) -> None:
        if (partition, record.offset) in self._set_aside:  # published already, when the batch was tried before
            return
        provenance = {
            "dead-letter-topic": self._topic,
            "dead-letter-partition": str(partition),
            "dead-letter-offset": str(record.offset),
            "dead-letter-reason": reason,
            "dead-letter-error": str(error)[:MAX_TEXT],
            "dead-letter-at": self._clock().isoformat(),
        }
        # A letter that was replayed and comes back must not carry the provenance of its first journey.
        headers = [(name, value) for name, value in record.headers if name not in provenance]
        headers += [(name, value.encode()) for name, value in provenance.items()]
        self._dead_letters.publish(record.value, headers, record.key)
        self._set_aside.add((partition, record.offset))
        self._metrics.dead_letters.labels(reason).inc()
        log.warning(
            "ingest.dead_letter", partition=partition, offset=record.offset, reason=reason, error=str(error)[:MAX_TEXT]
        )
