"""Outbox to broker: the embedded one, Apache Kafka, and none at all."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from structlog.testing import capture_logs

from agent.delivery.outbox import Outbox
from agent.delivery.transport import Publisher
from agent.metrics import AgentMetrics
from agent.wire.codec import SCHEMA_VERSION
from deploy.local.broker import Broker
from deploy.local.ports import free_port


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(tmp_path / "outbox.sqlite", 1 << 28)
    yield outbox
    outbox.close()


class Running:
    """A publisher on its thread."""

    def __init__(self, bootstrap: str, topic: str, outbox: Outbox, **changes: Any) -> None:
        self.metrics = AgentMetrics()
        settings: dict[str, Any] = {"compression": "gzip", "api_version": None, "max_in_flight_bytes": 1 << 20}
        self.publisher = Publisher(
            bootstrap, topic, metrics=self.metrics, agent_id="pod-1", clock=lambda: 77.0, **settings | changes
        )
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.publisher.run, args=(outbox, self.stop))

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        start = time.monotonic()
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert time.monotonic() - start < 5

    def count(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"reluscope_agent_{name}") or 0.0


def received(broker: Broker, topic: str, count: int) -> list[Any]:
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap,
        api_version=broker.api_version,
        auto_offset_reset="earliest",
        metadata_max_age_ms=1000,
    )
    # Asked before subscribing: kafka-python 3.0.12 may lose a topic's metadata request behind the bootstrap's.
    consumer.partitions_for_topic(topic)
    consumer.subscribe([topic])
    records: list[Any] = []
    deadline = time.monotonic() + 20
    while len(records) < count and time.monotonic() < deadline:
        for batch in consumer.poll(timeout_ms=200).values():
            records += batch
    consumer.close()
    return records


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.transport
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_everything_arrives_once_in_order_with_headers(
    broker: Broker, topic: str, outbox: Outbox, compression: str
) -> None:
    for _ in range(250):
        outbox.append("m@1", lambda seq: b"%d" % seq)
    with Running(broker.bootstrap, topic, outbox, api_version=broker.api_version, compression=compression) as running:
        eventually(lambda: outbox.depth() == (0, 0))
        outbox.append("m@1", lambda seq: b"%d" % seq)
        eventually(lambda: outbox.depth() == (0, 0))
    records = received(broker, topic, 251)
    assert [int(record.value) for record in records] == list(range(1, 252))
    assert {record.key for record in records} == {b"m@1"}
    epoch = b"%d" % outbox.boot_epoch
    schema = b"%d" % SCHEMA_VERSION
    assert dict(records[4].headers) == {"agent": b"pod-1", "epoch": epoch, "seq": b"5", "schema": schema}
    assert running.count("published_total") == 251
    assert running.count("last_publish_timestamp_seconds") == 77.0
    assert running.count("publish_errors_total") == 0


@pytest.mark.transport
def test_large_messages_go_in_several_rounds(broker: Broker, topic: str, outbox: Outbox) -> None:
    for _ in range(6):
        outbox.append("m@1", lambda seq: os.urandom(400_000))
    with Running(broker.bootstrap, topic, outbox, api_version=broker.api_version) as running:
        eventually(lambda: outbox.depth() == (0, 0))
    assert running.count("published_total") == 6
    assert len(received(broker, topic, 6)) == 6


@pytest.mark.transport
def test_what_waits_is_sent_on_the_way_out(broker: Broker, topic: str, outbox: Outbox) -> None:
    with Running(broker.bootstrap, topic, outbox, api_version=broker.api_version):
        outbox.append("m@1", lambda seq: b"first")
        eventually(lambda: outbox.depth() == (0, 0))
        outbox.append("m@1", lambda seq: b"last")
    assert outbox.depth() == (0, 0)
    assert [record.value for record in received(broker, topic, 2)] == [b"first", b"last"]


@pytest.mark.transport
def test_message_too_large_for_the_client_holds_up_nothing(broker: Broker, topic: str, outbox: Outbox) -> None:
    outbox.append("m@1", lambda seq: bytes(17 << 20))
    outbox.append("m@1", lambda seq: b"small")
    with Running(broker.bootstrap, topic, outbox, api_version=broker.api_version) as running:
        eventually(lambda: outbox.depth() == (0, 0))
    assert [record.value for record in received(broker, topic, 1)] == [b"small"]
    assert (running.count("outbox_dropped_total"), running.count("publish_errors_total")) == (1, 1)


@pytest.mark.parametrize("api_version", [None, (2, 3)])
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_unreachable_broker(outbox: Outbox, host: str, api_version: tuple[int, int] | None) -> None:
    outbox.append("m@1", lambda seq: b"waits")
    with (
        capture_logs() as logs,
        Running(f"{host}:{free_port()}", "t", outbox, api_version=api_version, jitter=lambda: 0.0) as running,
    ):
        eventually(lambda: running.count("publish_errors_total") >= 2)
        assert running.thread.is_alive()
    assert outbox.depth()[0] == 1
    assert [entry["event"] for entry in logs if entry["event"].startswith("publish.")] == ["publish.failing"]


def forward(listener: socket.socket, target: tuple[str, int]) -> None:
    """Hand every connection on to `target`, until the listener is closed."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    with contextlib.suppress(OSError):
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(target)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()


@pytest.mark.transport
@pytest.mark.parametrize("waits_for", ["metadata", "nothing"])
def test_broker_that_comes_late(broker: Broker, topic: str, outbox: Outbox, waits_for: str) -> None:
    host, port = broker.bootstrap.split(":")
    door = free_port()
    outbox.append("m@1", lambda seq: b"patient")
    with (
        capture_logs() as logs,
        Running(f"127.0.0.1:{door}", topic, outbox, api_version=broker.api_version, jitter=lambda: 0.0) as running,
    ):
        if waits_for == "metadata":
            eventually(lambda: running.count("publish_errors_total") >= 1)
        with socket.create_server(("127.0.0.1", door)) as listener:
            threading.Thread(target=forward, args=(listener, (host, int(port))), daemon=True).start()
            eventually(lambda: outbox.depth() == (0, 0))
            listener.shutdown(socket.SHUT_RDWR)
    assert [record.value for record in received(broker, topic, 1)] == [b"patient"]
    events = [entry["event"] for entry in logs if entry["event"].startswith("publish.")]
    assert events == (["publish.failing"] if waits_for == "metadata" else []) + ["publish.connected"]


def test_repeated_failures_leak_no_threads_and_no_files(outbox: Outbox) -> None:
    outbox.append("m@1", lambda seq: b"waits")
    running = Running(f"127.0.0.1:{free_port()}", "t", outbox, api_version=None)

    def used_after_failure() -> tuple[int, int]:
        with pytest.raises(KafkaError):
            running.publisher._round(outbox, running.stop)
        gc.collect()
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    threads, files = used_after_failure()
    for _ in range(3):
        now_threads, now_files = used_after_failure()
    assert now_threads <= threads
    assert now_files <= files


class FakeFuture:
    """What the client returns for a message, its fate decided."""

    is_done = True

    def __init__(self, exception: Exception | None) -> None:
        self.exception = exception

    def succeeded(self) -> bool:
        return self.exception is None


class FakeProducer:
    """Fails the messages whose payload says so."""

    def __init__(self) -> None:
        self.closed = False

    def send(self, topic: str, *, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> FakeFuture:
        fates = {b"fail": KafkaTimeoutError("no"), b"huge": MessageSizeTooLargeError("no")}
        return FakeFuture(fates.get(value))

    def close(self, timeout: float) -> None:
        self.closed = True


def test_only_what_the_broker_acknowledged_is_forgotten(outbox: Outbox) -> None:
    values = [b"good", b"fail", b"huge", b"good"]
    for _ in values:
        outbox.append("m@1", lambda seq: values[seq - 1])
    running = Running("unused:1", "t", outbox)
    fake = running.publisher._producer._producer = FakeProducer()
    with pytest.raises(KafkaTimeoutError):
        running.publisher._round(outbox, running.stop)
    assert [item.payload for item in outbox.pending(9)] == [b"fail"]
    assert (running.count("published_total"), running.count("outbox_dropped_total")) == (2, 1)
    assert fake.closed
