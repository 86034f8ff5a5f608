"""Ordinary accidents of a broker: a topic made anew or widened, a join that ends while the detector is busy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewPartitions, NewTopic
from kafka.errors import TopicAlreadyExistsError

from agent.wire import encode
from deploy.local.broker import Broker
from detector.store import Store
from tests.detector.builders import MINUTE, START, window
from tests.integration.test_exactly_once import N, detector, eventually, requests


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


def produce(broker: Broker, topic: str, first: int, count: int, partition: int = 0) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, api_version=broker.api_version)
    for i in range(first, first + count):
        producer.send(topic, encode(window(i, START + i * MINUTE)), partition=partition).get(timeout=20)
    producer.close()


def make(admin: Any, topic: str) -> None:
    with suppress(TopicAlreadyExistsError):  # as brokers make what a detector asks for
        admin.create_topics([NewTopic(topic, 1, 1)])


@pytest.mark.kafka
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_topic_that_is_deleted_and_made_again_is_read_from_its_beginning(
    broker: Broker, topic: str, database_url: str, store: Store, running: bool
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    make(admin, topic)
    produce(broker, topic, 0, 5)

    def anew() -> None:
        admin.delete_topics([topic])
        make(admin, topic)
        produce(broker, topic, 5, 8)  # more than the former topic had, so that its offset is one of the new topic, too

    with detector(broker, topic, database_url):
        eventually(lambda: store.next_offsets(topic) == {0: 5})
        if running:
            anew()
            eventually(lambda: requests(store) == 13 * N, seconds=60)
    if not running:
        anew()
        with detector(broker, topic, database_url):
            eventually(lambda: requests(store) == 13 * N, seconds=60)
    assert requests(store) == 13 * N
    admin.close()


@pytest.mark.kafka
def test_partitions_that_are_added_are_read_from_their_beginning(
    broker: Broker, topic: str, database_url: str, store: Store
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    make(admin, topic)
    produce(broker, topic, 0, 2)
    with detector(broker, topic, database_url):
        eventually(lambda: store.next_offsets(topic) == {0: 2})
        admin.create_partitions({topic: NewPartitions(3)})
        produce(broker, topic, 2, 4, partition=2)
        eventually(lambda: requests(store) == 6 * N)
    admin.close()


@pytest.mark.transport
def test_a_join_that_ends_while_the_detector_is_busy_is_not_thrown_away(
    broker: Broker, topic: str, database_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(broker, topic, 0, 1)
    poll = KafkaConsumer.poll

    def slowly(self: Any, *args: Any, **named: Any) -> Any:
        polled = poll(self, *args, **named)
        if not self.assignment():
            time.sleep(4)  # longer than the broker's delay before a group's first generation
        return polled

    monkeypatch.setattr(KafkaConsumer, "poll", slowly)
    with detector(broker, topic, database_url):
        eventually(lambda: requests(store) == N, seconds=20)
