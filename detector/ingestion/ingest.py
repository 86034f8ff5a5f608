"""From records to Postgres: decode, set aside what cannot be used, apply the rest in one transaction.

Two kinds of trouble are kept apart. A message that is wrong will be wrong for ever: it goes to the dead letters with
its provenance, before the transaction that moves the offset past it, so that a crash in between repeats the letter and
never loses it. Infrastructure that fails will come back: `RetryLater`, and nothing is set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from agent.wire import Envelope, WireError, decode
from detector.domain.types import RefusedProbe
from detector.ingestion.plausible import Implausible, check
from detector.metrics import DetectorMetrics
from detector.store import IngestResult, LostOwnership, StoreError, StoreRefused

log = structlog.get_logger()

Headers = Sequence[tuple[str, bytes]]
MAX_TEXT = 500
_MOST_SAID = 1024


@dataclass(frozen=True, slots=True)
class Record:
    """One message as the broker gave it."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class RetryLater(Exception):
    """Infrastructure failed; everything from the partition's stored offset on has to be read again."""

    def __init__(self, reason: str, message: str) -> None:
        """``reason`` is a short bounded word, used as a metric label."""
        super().__init__(message)
        self.reason = reason


class DeadLetterBox(Protocol):
    """Where unusable messages go."""

    def publish(self, raw: bytes | None, headers: Headers, key: bytes | None = None) -> None:
        """Returns when the broker has it; raises RetryLater."""


class IngestStore(Protocol):
    """The part of the store that ingest needs."""

    def next_offsets(self, topic: str) -> dict[int, int]: ...
    def ingest(
        self,
        topic: str,
        partition: int,
        expected_offset: int | None,
        next_offset: int,
        envelopes: Sequence[Envelope],
    ) -> IngestResult: ...


class IngestHandler:
    """Applies micro-batches; for one consumer, in one thread."""

    def __init__(
        self,
        store: IngestStore,
        topic: str,
        dead_letters: DeadLetterBox,
        metrics: DetectorMetrics,
        clock: Callable[[], datetime],
    ) -> None:
        self._store, self._topic, self._dead_letters = store, topic, dead_letters
        self._metrics, self._clock = metrics, clock
        self._expected: dict[int, int | None] = {}
        self._set_aside: set[tuple[int, int]] = set()
        self._said: set[RefusedProbe] = set()

    def assigned(self, partitions: Iterable[int]) -> dict[int, int | None]:
        """Takes over these partitions and no others; from which offset on each is to be read (None: its beginning).

        Raises RetryLater.
        """
        try:
            known = self._store.next_offsets(self._topic)
        except StoreError as error:
            raise RetryLater("postgres", str(error)) from error
        self._expected = {partition: known.get(partition) for partition in partitions}
        self._set_aside = {letter for letter in self._set_aside if letter[0] in self._expected}
        return dict(self._expected)

    def handle(self, partition: int, records: Sequence[Record]) -> None:
        """Applies consecutive records of an assigned partition; raises RetryLater, with nothing half applied."""
        usable: list[tuple[Record, Envelope]] = []
        for record in records:
            envelope = self._read(partition, record)
            if envelope is not None:
                usable.append((record, envelope))
        end = records[-1].offset + 1
        try:
            self._apply(partition, end, [envelope for _, envelope in usable])
        except StoreRefused:
            self._one_by_one(partition, end, usable)
        self._set_aside = {letter for letter in self._set_aside if letter[0] != partition}

    def _read(self, partition: int, record: Record) -> Envelope | None:
        try:
            envelope = decode(record.value or b"")
            check(envelope, self._clock())
        except WireError as error:
            self._dead(partition, record, "undecodable", error)
        except Implausible as error:
            self._dead(partition, record, "implausible", error)
        else:
            return envelope
        return None

    def _one_by_one(self, partition: int, end: int, usable: Iterable[tuple[Record, Envelope]]) -> None:
        """Finds the messages of a refused batch that Postgres does not take, and applies the others."""
        for record, envelope in usable:
            try:
                self._apply(partition, record.offset + 1, [envelope])
            except StoreRefused as error:
                self._dead(partition, record, "refused", error)
        self._apply(partition, end, [])

    def _apply(self, partition: int, end: int, envelopes: Sequence[Envelope]) -> None:
        try:
            result = self._store.ingest(self._topic, partition, self._expected[partition], end, envelopes)
        except StoreRefused:
            raise
        except LostOwnership as error:
            raise RetryLater("lost_ownership", str(error)) from error
        except StoreError as error:
            raise RetryLater("postgres", str(error)) from error
        self._expected[partition] = end
        self._metrics.ingest_applied(result.applied, result.duplicates)
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
