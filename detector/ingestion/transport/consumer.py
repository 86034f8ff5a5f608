"""Kafka in. Postgres says which offset is next; what is committed to Kafka is for the eyes of its tools."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from agent.supervise import Backoff, repeat
from detector.ingestion.cuts import Cuts, Mark
from detector.ingestion.records import Record, RetryLater
from detector.ingestion.transport.letters import CONNECT_MS, ApiVersion, reach
from detector.metrics import DetectorMetrics

log = structlog.get_logger()

POLL_MS = 500
JOIN_MS = 5000
"""Of one poll while the group settles. kafka-python 3.0.12 throws a join away that ends between two polls, and asks
again, which makes all members join once more: so a poll has to last until the join is through, longer than a broker's
own delay (`group.initial.rebalance.delay.ms`, 3 s by default), and the next begins at once."""
MAX_RECORDS = 200
"""Of one poll, which bounds a micro-batch."""
CUT_SECONDS = 2.0
"""Between two looks at how far the partitions are ingested."""
_LOG_APPEND_TIME = 1
FIRST_DELAY = 0.5
LAST_DELAY = 20.0
"""Far below max.poll.interval.ms, so that waiting for Postgres costs no group membership."""


class Handler(Protocol):
    """What takes records; in production `detector.ingestion.ingest.IngestHandler`. All methods raise RetryLater."""

    def assigned(self, partitions: Iterable[int], topic_id: str | None = None) -> dict[int, int | None]: ...
    def handle(self, partition: int, records: Sequence[Record]) -> None: ...
    def reached(self, marks: Mapping[int, Mark]) -> None: ...


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called on the client's I/O thread, where blocking would stop the heartbeat: takes a note and no more."""

    def __init__(self) -> None:
        self.joining = True
        self.changed = threading.Event()

    def on_partitions_revoked(self, revoked: object) -> None:
        self.joining = True
        self.changed.set()

    def on_partitions_assigned(self, assigned: object) -> None:
        self.joining = False
        self.changed.set()

    def on_partitions_lost(self, lost: object) -> None:
        # By default this is revocation, as if there were still something to commit.
        self.joining = True
        self.changed.set()


class Consumer:
    """A member of a consumer group that reads each partition from where Postgres says."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str,
        api_version: ApiVersion,
        metrics: DetectorMetrics,
        *,
        options: Mapping[str, Any] | None = None,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Nothing is connected before `run`. ``options`` are further settings of the client, such as TLS."""
        self._topic, self._metrics, self._clock = topic, metrics, clock
        self._broker, self._later = (Backoff(FIRST_DELAY, LAST_DELAY, jitter) for _ in range(2))
        self._reached = True
        self._topic_id: str | None = None
        self._bootstrap = bootstrap
        self._settings: dict[str, Any] = {
            "bootstrap_servers": bootstrap.split(","),
            "client_id": "reluscope-detector",
            "group_id": group,
            "api_version": api_version,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "isolation_level": "read_committed",
            "max_partition_fetch_bytes": 8 << 20,
            "fetch_max_bytes": 32 << 20,
            "bootstrap_timeout_ms": CONNECT_MS,
            "reconnect_backoff_max_ms": 5000,
            # A lost metadata answer leaves the group leader without partitions until the next refresh.
            "metadata_max_age_ms": 10_000,
            "metrics_enabled": False,
            **(options or {}),
        }

    def run(self, handler: Handler, stop: threading.Event) -> None:
        """Feeds ``handler`` until ``stop`` is set; outlives an unreachable broker. Raises what the handler raises."""
        repeat(lambda: self._session(handler, stop), stop, self._broker, self._lost, on=KafkaError)

    def _session(self, handler: Handler, stop: threading.Event) -> None:
        with self._connected() as (consumer, rebalances):
            if not self._reached:
                log.info("ingest.broker_reached")
            self._reached = True
            self._broker.reset()
            self._consume(consumer, rebalances, handler, stop)

    def _lost(self, error: Exception, _seconds: float) -> None:
        self._metrics.ingest_errors.labels("broker").inc()
        if self._reached:  # said once, not at every attempt
            log.warning("ingest.broker_unreachable", error=str(error))
        self._reached = False

    @contextmanager
    def _connected(self) -> Iterator[tuple[Any, _Rebalances]]:
        rebalances = _Rebalances()
        reach(self._bootstrap)
        consumer = KafkaConsumer(**self._settings)
        try:
            # Ask before subscribing: kafka-python 3.0.12 loses the topic's metadata request while the bootstrap's
            # answer is on its way, and the group would be assigned nothing.
            consumer.partitions_for_topic(self._topic)
            consumer.subscribe([self._topic], listener=rebalances)
            yield consumer, rebalances
        finally:
            consumer.close(autocommit=False, timeout_ms=CONNECT_MS)

    def _consume(self, consumer: Any, rebalances: _Rebalances, handler: Handler, stop: threading.Event) -> None:
        positioned = False
        cuts, next_cut = Cuts(), time.monotonic()
        while not stop.is_set():
            patience = JOIN_MS if rebalances.joining else POLL_MS
            polled = consumer.poll(timeout_ms=patience, max_records=MAX_RECORDS)
            if rebalances.joining:
                positioned = False
                continue
            if rebalances.changed.is_set():
                rebalances.changed.clear()
                positioned = False
            try:
                if not positioned or self._made_anew(consumer):
                    # Drops what was polled: Kafka chose where it began.
                    positioned = self._position(consumer, handler)
                    cuts = Cuts()
                    continue
                self._handle(consumer, handler, polled)
                if time.monotonic() >= next_cut:
                    self._cut(consumer, handler, cuts)
                    next_cut = time.monotonic() + CUT_SECONDS
                self._later.reset()
            except RetryLater as error:
                positioned = False
                self._metrics.ingest_errors.labels(error.reason).inc()
                seconds = self._later.seconds()
                log.warning("ingest.retry", reason=error.reason, error=str(error), retry_seconds=round(seconds, 1))
                consumer.pause(*consumer.assignment())
                stop.wait(seconds)

    def _position(self, consumer: Any, handler: Handler) -> bool:
        """Moves every assigned partition to its offset in Postgres; False where a rebalance came in between."""
        assigned = {partition.partition: partition for partition in consumer.assignment()}
        self._topic_id = _topic_id(consumer, self._topic)
        positions = handler.assigned(assigned, self._topic_id)
        try:
            ends = consumer.end_offsets(list(assigned.values()), timeout_ms=CONNECT_MS) if assigned else {}
            for number, offset in positions.items():
                if offset is not None and offset > ends[assigned[number]]:
                    # Where brokers do not tell topics apart, and after a broker that lost what it had acknowledged.
                    log.warning("ingest.offset_beyond_end", partition=number, offset=offset, end=ends[assigned[number]])
                    offset = None
                if offset is None:
                    consumer.seek_to_beginning(assigned[number])
                else:
                    consumer.seek(assigned[number], offset)
                consumer.resume(assigned[number])
        except (KeyError, ValueError):  # the client's words for a partition that is no longer ours
            log.info("ingest.rebalanced_again")
            return False
        except KafkaError as error:
            log.debug("ingest.no_ends", error=str(error))
            return False
        if positions:
            log.info("ingest.assigned", topic=self._topic, offsets=positions)
        return True

    def _made_anew(self, consumer: Any) -> bool:
        """Whether the topic is another than the one whose offsets are being read."""
        return _topic_id(consumer, self._topic) not in (self._topic_id, None)

    def _handle(self, consumer: Any, handler: Handler, polled: Mapping[TopicPartition, Sequence[Any]]) -> None:
        for partition, messages in polled.items():
            records = [Record(m.offset, m.key, m.value, tuple(m.headers or ()), _appended(m)) for m in messages]
            handler.handle(partition.partition, records)
            consumer.commit_async({partition: OffsetAndMetadata(records[-1].offset + 1, "", -1)}, callback=_committed)

    def _cut(self, consumer: Any, handler: Handler, cuts: Cuts) -> None:
        """Tells the handler how far partitions are ingested, and asks for their present ends.

        An idle partition is told at once: what it held as it was asked, it has given already.
        """
        assigned = {partition.partition: partition for partition in consumer.assignment()}
        try:
            if wanted := cuts.lacking(assigned):
                at = self._clock()
                ends = consumer.end_offsets([assigned[number] for number in wanted], timeout_ms=CONNECT_MS)
                cuts.begin(at, {partition.partition: end for partition, end in ends.items()})
            places = {number: consumer.position(assigned[number], timeout_ms=CONNECT_MS) for number in cuts.pending}
        except (KafkaError, KeyError) as error:  # a broker that is away, or a partition that is no longer ours
            log.debug("ingest.no_cut", error=str(error))
            return
        handler.reached(cuts.reached({number: place for number, place in places.items() if place is not None}))


def _topic_id(consumer: Any, topic: str) -> str | None:
    """What tells a topic from another that had the name before it; None where the broker does not say."""
    found = consumer._manager.cluster.topic_id(topic)  # kafka-python 3.0.12 has no public way to ask
    return None if found is None or not found.int else str(found)


def _appended(message: Any) -> datetime | None:
    """The broker's time, where the topic has ``message.timestamp.type=LogAppendTime``."""
    if getattr(message, "timestamp_type", 0) != _LOG_APPEND_TIME:
        return None
    return datetime.fromtimestamp(message.timestamp / 1000, UTC)


def _committed(offsets: object, response: object) -> None:
    if isinstance(response, Exception):
        log.debug("ingest.advisory_commit_failed", error=str(response))
