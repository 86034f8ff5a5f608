"""Kafka to Postgres over the detector's own consumer: everything acknowledged arrives, nothing counts twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from kafka import KafkaProducer

from agent.wire import Envelope, encode
from deploy.local.broker import Broker
from detector.ingestion import dead_letters
from detector.ingestion.ingest import IngestHandler
from detector.ingestion.transport import Consumer, DeadLetters
from detector.metrics import DetectorMetrics
from detector.store import Store
from tests.detector.builders import MINUTE, START, window

pytestmark = pytest.mark.transport
N = 20
"""Requests in each window of `builders.window`."""


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


@pytest.fixture
def produce(broker: Broker, topic: str) -> Iterator[Callable[..., None]]:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, api_version=broker.api_version)

    def send(*messages: Envelope | bytes, partition: int = 0) -> None:
        for message in messages:
            raw = message if isinstance(message, bytes) else encode(message)
            producer.send(topic, raw, key=b"digits@1", partition=partition, headers=[("agent", b"a")]).get(timeout=20)

    yield send
    producer.close()


class Detector:
    """An ingesting detector in a thread."""

    def __init__(self, broker: Broker, topic: str, database_url: str, group: str = "detector") -> None:
        self.metrics = DetectorMetrics(lambda: datetime.now(UTC), 600)
        self._store = Store(database_url)
        self._letters = DeadLetters(broker.bootstrap, topic, broker.api_version)
        self.handler = IngestHandler(self._store, topic, self._letters, self.metrics, lambda: datetime.now(UTC))
        self._consumer = Consumer(
            broker.bootstrap,
            topic,
            f"{topic}.{group}",
            broker.api_version,
            self.metrics,
            options={"session_timeout_ms": 6000, "heartbeat_interval_ms": 500},
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._consumer.run, args=(self.handler, self._stop), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._letters.close()
        self._store.close()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def detector(broker: Broker, topic: str, database_url: str, group: str = "detector") -> Iterator[Detector]:
    running = Detector(broker, topic, database_url, group)
    running.start()
    try:
        yield running
    finally:
        running.close()


def eventually(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing of the kind in time"
        time.sleep(0.1)


def requests(store: Store) -> int:
    found = store.model_version("digits", "1")
    if found is None:
        return 0
    return sum(span.n for span in store.spans(found.id, START, START + 1000 * MINUTE))


def test_all_partitions_arrive_once(
    broker: Broker, topic: str, database_url: str, store: Store, produce: Callable[..., None]
) -> None:
    for i in range(10):
        produce(window(i, START + i * MINUTE), partition=i % 2)
    produce(window(3, START + 3 * MINUTE), window(3, START + 3 * MINUTE), partition=0)  # and twice over another road
    with detector(broker, topic, database_url) as running:
        eventually(lambda: sum(store.next_offsets(topic).values()) == 12)
        assert requests(store) == 10 * N
        assert running.count("reluscope_ingested_messages_total") == 10
        assert running.count("reluscope_duplicate_messages_total") == 2


def test_a_restart_reads_on_from_what_postgres_says(
    broker: Broker, topic: str, database_url: str, store: Store, produce: Callable[..., None]
) -> None:
    produce(window(1), window(2))
    with detector(broker, topic, database_url):
        eventually(lambda: store.next_offsets(topic) == {0: 2})
    produce(window(3))
    # Another group has committed nothing to Kafka, which must not matter.
    with detector(broker, topic, database_url, group="another") as running:
        eventually(lambda: store.next_offsets(topic).get(0) == 3)
        assert running.count("reluscope_ingested_messages_total") == 1
        assert running.count("reluscope_duplicate_messages_total") == 0
    assert requests(store) == 3 * N


def test_an_owner_that_lost_its_partition_writes_nothing_and_recovers(
    broker: Broker, topic: str, database_url: str, store: Store, produce: Callable[..., None]
) -> None:
    produce(window(1))
    with detector(broker, topic, database_url) as running:
        eventually(lambda: store.next_offsets(topic) == {0: 1})
        # The group has settled: a young topic's first metadata may make it join twice, and offsets are read again then.
        settled = datetime.now(UTC) + timedelta(seconds=3)
        eventually(lambda: store.complete_to(topic)[0] > settled)
        # Someone else applies the next message behind its back, as after a pause that cost it the partition.
        store.ingest(topic, 0, 1, 2, [window(2)])
        produce(window(2), window(3))
        eventually(lambda: store.next_offsets(topic) == {0: 3})
        assert running.count("reluscope_ingest_errors_total", reason="lost_ownership") >= 1
    assert requests(store) == 3 * N


def test_partitions_are_known_to_be_complete_busy_or_idle(
    broker: Broker, topic: str, database_url: str, store: Store, produce: Callable[..., None]
) -> None:
    produce(window(1))
    produce(window(2, START + MINUTE), partition=1)
    begin = datetime.now(UTC)
    with detector(broker, topic, database_url):
        eventually(lambda: set(store.complete_to(topic)) == {0, 1} and min(store.complete_to(topic).values()) > begin)
        first = store.complete_to(topic)
        produce(window(3), partition=0)
        sent = datetime.now(UTC)
        eventually(lambda: min(store.complete_to(topic).values()) > sent)
        assert sum(store.next_offsets(topic).values()) == 3, "complete to after it was sent, so it is there"
        assert first[1] < store.complete_to(topic)[1], "nothing was sent there"
    stopped = store.complete_to(topic)
    time.sleep(3)
    assert store.complete_to(topic) == stopped, "nobody ingests"


def test_two_detectors_share_the_partitions(
    broker: Broker, topic: str, database_url: str, store: Store, produce: Callable[..., None]
) -> None:
    produce(window(0))
    produce(window(100), partition=1)
    with detector(broker, topic, database_url):
        eventually(lambda: sum(store.next_offsets(topic).values()) == 2)
        with detector(broker, topic, database_url):
            for i in range(1, 21):
                produce(window(i, START + i * MINUTE), partition=i % 2)
                time.sleep(0.1)
            # On a busy machine the embedded broker refuses a leader whose group has changed meanwhile many times over.
            eventually(lambda: sum(store.next_offsets(topic).values()) == 22, seconds=100)
        produce(window(21, START + 21 * MINUTE), partition=1)  # after the second has left
        eventually(lambda: sum(store.next_offsets(topic).values()) == 23, seconds=100)
    assert requests(store) == 23 * N


def test_postgres_away_for_a_while_costs_nothing(
    broker: Broker, topic: str, database_url: str, store: Store, produce: Callable[..., None]
) -> None:
    produce(window(1), b"junk")
    with detector(broker, topic, database_url) as running:
        eventually(lambda: store.next_offsets(topic) == {0: 2})
        with store._database.begin() as connection:  # the next transaction meets a table that is gone
            connection.exec_driver_sql("ALTER TABLE ingest_keys RENAME TO hidden")
        produce(b"junk again", window(2))
        eventually(lambda: running.count("reluscope_ingest_errors_total", reason="postgres") >= 2)
        with store._database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO ingest_keys")
        eventually(lambda: store.next_offsets(topic) == {0: 4})
        # The transaction was tried again and again, the letter was written once.
        assert running.count("reluscope_dead_letter_messages_total", reason="undecodable") == 2
    letters = DeadLetters(broker.bootstrap, topic, broker.api_version)
    assert [letter.value for letter in letters.read()] == [b"junk", b"junk again"]
    letters.close()
    assert requests(store) == 2 * N


def test_dead_letters_are_listed_and_replayed(
    broker: Broker, topic: str, database_url: str, store: Store, produce: Callable[..., None]
) -> None:
    def run(*arguments: str) -> str:
        base = ["--bootstrap-servers", broker.bootstrap, "--topic", topic]
        if broker.api_version is not None:
            base += ["--kafka-api-version", ".".join(map(str, broker.api_version))]
        result = CliRunner().invoke(dead_letters.command, [*base, *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    with store._database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE probes ADD CONSTRAINT barred CHECK (name <> 'barred')")
    produce(window(1), b"junk", window(2, layers=("barred", "fc1")))
    with detector(broker, topic, database_url) as running:
        eventually(lambda: store.next_offsets(topic) == {0: 3})
        listed = run("list").splitlines()
        assert len(listed) == 3
        assert f"{topic}/0@1  undecodable: not a reluscope message" in run("list", "--reason", "undecodable")
        assert '"reason": "refused"' in run("list", "--json")
        assert "would send 1 letters" in run("replay", "--dry-run")
        # The operator mends what stood in the way.
        with store._database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE probes DROP CONSTRAINT barred")
        assert "1 are still unusable" in run("replay")
        eventually(lambda: running.count("reluscope_ingested_messages_total") == 2)
    found = store.model_version("digits", "1")
    assert found is not None
    assert {p.name for p in store.probes(found.id)} == {"conv1", "fc1", "barred"}


def test_an_unreachable_broker_is_waited_for(database_url: str, topic: str, broker: Broker) -> None:
    nobody = Broker("127.0.0.1:9", broker.api_version)
    with detector(nobody, topic, database_url) as running:
        eventually(lambda: running.count("reluscope_ingest_errors_total", reason="broker") >= 1)
    result = CliRunner().invoke(dead_letters.command, ["--bootstrap-servers", nobody.bootstrap, "list"])
    assert result.exit_code == 1
    assert "cannot read reluscope.windows.dead-letter" in result.output
