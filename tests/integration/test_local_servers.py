"""The servers that demo and tests run on are real and speak to each other."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from kafka import KafkaConsumer, KafkaProducer

from deploy.local import kafka as local_kafka
from deploy.local.broker import Broker
from deploy.local.postgres import psycopg_url
from deploy.local.prometheus import alertmanager, prometheus

RULES = """
groups:
  - name: test
    rules:
      - alert: TargetDown
        expr: up == 0
        labels: {severity: warning}
"""


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """The URL of a webhook, and what it has been sent."""
    received: list[dict[str, object]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.transport
def test_broker_keeps_what_an_idempotent_producer_sends(broker: Broker, topic: str) -> None:
    version = {} if broker.api_version is None else {"api_version": broker.api_version}
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", enable_idempotence=True, **version)
    for number in range(20):
        producer.send(topic, key=b"model@1", value=str(number).encode()).get(timeout=20)
    producer.close()
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=broker.bootstrap,
        group_id=topic,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        consumer_timeout_ms=20_000,
        # kafka-python loses the request for a topic's metadata when it subscribes while the first answer is on its
        # way, and asks again only at this age, five minutes by default.
        metadata_max_age_ms=1_000,
        **version,
    )
    assert [int(next(consumer).value) for _ in range(20)] == list(range(20))
    consumer.close()


@pytest.mark.transport
def test_broker_is_told_to_commands_by_options(broker: Broker) -> None:
    assert broker.options()[:2] == ["--bootstrap-servers", broker.bootstrap]
    assert ("--kafka-api-version" in broker.options()) == (broker.api_version is not None)


def test_kafka_is_unavailable_without_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    assert local_kafka.unavailable() == "no java, and KAFKA_BOOTSTRAP_SERVERS is not set"


def test_given_kafka_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    assert local_kafka.unavailable() is None
    with local_kafka.kafka(tmp_path) as broker:
        assert broker == Broker("kafka.example:9092")


def test_databases_are_fresh(empty_database_url: str) -> None:
    with psycopg.connect(psycopg_url(empty_database_url)) as connection:
        row = connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone()
    assert row == (0,)


@pytest.mark.usefixtures("monitoring")
def test_alert_travels_from_prometheus_to_webhook(tmp_path: Path, webhook: tuple[str, list[dict[str, object]]]) -> None:
    url, received = webhook
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES)
    with (
        alertmanager(tmp_path / "alertmanager", url) as manager,
        prometheus(tmp_path / "prometheus", [rules], {"nothing": ["127.0.0.1:1"]}, manager),
    ):
        deadline = time.monotonic() + 30
        while not received and time.monotonic() < deadline:
            time.sleep(0.1)
    assert received[0]["status"] == "firing"
    assert received[0]["commonLabels"] == {
        "alertname": "TargetDown",
        "instance": "127.0.0.1:1",
        "job": "nothing",
        "severity": "warning",
    }
