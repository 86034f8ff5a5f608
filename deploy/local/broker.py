"""A Kafka broker inside this process: in memory, for the demo and for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import confluent_kafka


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker listens, and which protocol version clients must assume (None: they ask it)."""

    bootstrap: str
    api_version: tuple[int, int] | None = None

    def options(self) -> list[str]:
        """The command line options of `reluscope agent` and `reluscope detector` for this broker."""
        options = ["--bootstrap-servers", self.bootstrap]
        if self.api_version is not None:
            options += ["--kafka-api-version", ".".join(map(str, self.api_version))]
        return options


@contextmanager
def embedded_broker() -> Iterator[Broker]:
    """librdkafka's mock cluster of one broker, on a free loopback port, gone on exit.

    It speaks the real protocol (idempotent producers, consumer groups), makes topics of four partitions on first
    use, keeps everything in memory and forgets the oldest messages of a partition. It announces protocol versions
    that kafka-python cannot negotiate, therefore the fixed `api_version`.
    """
    owner = confluent_kafka.Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    brokers = owner.list_topics(timeout=10).brokers.values()
    try:
        yield Broker(bootstrap=",".join(f"{broker.host}:{broker.port}" for broker in brokers), api_version=(2, 3))
    finally:
        # The cluster lives as long as the client that made it.
        del owner
