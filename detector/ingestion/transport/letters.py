"""Kafka out: messages that cannot be used, kept with their provenance."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError

from detector.ingestion.records import Headers, RetryLater

ApiVersion = tuple[int, ...] | None
"""None: ask the broker."""
CONNECT_MS = 3000
POLL_MS = 500
SEND_SECONDS = 10.0
KEPT_BYTES = 65_536
"""Of a letter that is too large for the dead-letter topic."""


class Unreachable(KafkaConnectionError):  # type: ignore[misc]
    """No broker accepts a connection."""

    def __str__(self) -> str:
        return str(self.args[0])  # without the class name that the client's errors begin with


def reach(bootstrap: str) -> None:
    """Raises Unreachable unless one of the brokers (host:port, by commas) accepts a connection.

    The client would try for ever, deaf to its own time limits, where the API version is given.
    """
    said = []
    for server in filter(None, map(str.strip, bootstrap.split(","))):
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_MS / 1000).close()
            return
        except (OSError, ValueError, OverflowError) as error:
            said.append(f"{server}: {error}")
    raise Unreachable(f"no Kafka broker answers ({'; '.join(said) or 'none is named'})")


@dataclass(frozen=True, slots=True)
class Letter:
    """A message in the dead-letter topic, with its provenance in the headers."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    def header(self, name: str) -> str:
        """The last header of that name; "" where there is none."""
        found = [value for key, value in self.headers if key == name]
        return found[-1].decode(errors="replace") if found and found[-1] is not None else ""


class DeadLetters:
    """The topic ``<topic>.dead-letter``: written by ingest, read and sent back by `reluscope dead-letters`."""

    def __init__(
        self, bootstrap: str, topic: str, api_version: ApiVersion, *, options: Mapping[str, Any] | None = None
    ) -> None:
        """Nothing is connected before it is used. ``options`` are further settings of the client, such as TLS."""
        self.source, self.topic = topic, f"{topic}.dead-letter"
        self._producer: Any = None
        self._bootstrap = bootstrap
        self._settings: dict[str, Any] = {
            "bootstrap_servers": bootstrap.split(","),
            "client_id": "reluscope-dead-letters",
            "api_version": api_version,
            "bootstrap_timeout_ms": CONNECT_MS,
            "metrics_enabled": False,
            **(options or {}),
        }

    def publish(self, raw: bytes | None, headers: Headers, key: bytes | None = None) -> None:
        """Returns when all in-sync replicas have it; raises RetryLater."""
        try:
            self._send(self.topic, raw, headers, key)
        except MessageSizeTooLargeError:
            # Provenance without the whole text is better than a partition that stands still.
            self._send(self.topic, (raw or b"")[:KEPT_BYTES], [*headers, ("dead-letter-truncated", b"1")], key)

    def send_back(self, letter: Letter) -> None:
        """Puts a letter on the topic that it came from, without its provenance; raises RetryLater."""
        headers = [(name, value) for name, value in letter.headers if not name.startswith("dead-letter-")]
        self._send(self.source, letter.value, headers, letter.key)

    def read(self) -> Iterator[Letter]:
        """All letters that are there now, partition by partition; raises RetryLater."""
        try:
            yield from self._read()
        except KafkaError as error:
            raise RetryLater("broker", str(error)) from error

    def close(self) -> None:
        """Disconnects."""
        if self._producer is not None:
            self._producer.close(timeout=CONNECT_MS / 1000)
            self._producer = None

    def _send(self, topic: str, value: bytes | None, headers: Headers, key: bytes | None) -> None:
        try:
            if self._producer is None:
                reach(self._bootstrap)
                self._producer = KafkaProducer(
                    **self._settings,
                    enable_idempotence=True,
                    acks="all",
                    max_block_ms=int(SEND_SECONDS * 1000),
                    max_request_size=16 << 20,
                )
            self._producer.send(topic, value=value, key=key, headers=list(headers)).get(timeout=SEND_SECONDS)
        except MessageSizeTooLargeError:
            raise
        except KafkaError as error:
            raise RetryLater("dead_letter", f"{topic}: {error}") from error

    def _read(self) -> Iterator[Letter]:
        reach(self._bootstrap)
        consumer = KafkaConsumer(**self._settings, enable_auto_commit=False, isolation_level="read_committed")
        try:
            numbers = sorted(consumer.partitions_for_topic(self.topic) or ())
            for partition in (TopicPartition(self.topic, number) for number in numbers):
                consumer.assign([partition])
                end = consumer.end_offsets([partition])[partition]
                consumer.seek_to_beginning(partition)
                while consumer.position(partition) < end:
                    for m in consumer.poll(timeout_ms=POLL_MS).get(partition, ()):
                        yield Letter(m.partition, m.offset, m.key, m.value, tuple(m.headers or ()))
        finally:
            consumer.close(autocommit=False, timeout_ms=CONNECT_MS)
