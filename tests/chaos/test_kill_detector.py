"""`kill -9` on the detector, ten times, in the middle of a stream: Postgres holds what the broker acknowledged."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from kafka import KafkaProducer

from agent.summary import Summary, merge
from agent.wire import Window, encode
from deploy.local.broker import Broker
from detector.store import Store
from tests.detector.builders import MINUTE, START, same, window

KILLS = 10
SECONDS_BETWEEN = 0.02
PARTITIONS = 4
WINDOWS = 30


class Stream(threading.Thread):
    """Publishes windows to all partitions until stopped, some twice; knows what was acknowledged."""

    def __init__(self, broker: Broker, topic: str) -> None:
        super().__init__(daemon=True)
        self.halt = threading.Event()
        self.messages = self.sent = 0
        self.expected: dict[tuple[int, str], Summary] = {}
        self._topic, self._random = topic, random.Random(7)
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap, api_version=broker.api_version, acks="all")

    def run(self) -> None:
        while not self.halt.wait(SECONDS_BETWEEN):
            i = self.messages
            at = i % WINDOWS
            envelope = window(i, START + at * MINUTE, agent=f"agent-{i % 3}")
            for _ in range(2 if self._random.random() < 0.1 else 1):
                self._producer.send(self._topic, encode(envelope), partition=i % PARTITIONS).get(timeout=30)
                self.sent += 1
            self.messages += 1
            assert isinstance(envelope.body, Window)
            for item in envelope.body.probes:
                key = (at, item.probe.name)
                self.expected[key] = merge(self.expected[key], item.summary) if key in self.expected else item.summary

    def close(self) -> None:
        self.halt.set()
        self.join(60)
        self._producer.close()


@contextmanager
def detector(broker: Broker, topic: str, database_url: str, life: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    # A group of its own for each life, so that no life waits for the broker to miss the one before. Kafka then knows
    # nothing of what was read, and Postgres alone has to.
    options = ["--topic", topic, "--group", f"{topic}.{life}", "--port", "0", "--check-interval", "3600"]
    options += ["--retention-days", "100000"]  # the windows are of a fixed day
    code = "from detector.service import command; command()"
    command = [sys.executable, "-c", code, "--database-url", database_url, *broker.options(), *options]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=Path(__file__).parents[2])
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def eventually(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.02)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_kills_lose_nothing_and_count_nothing_twice(
    broker: Broker, topic: str, database_url: str, tmp_path: Path
) -> None:
    log, chance = tmp_path / "detector.log", random.Random(11)
    store, stream = Store(database_url), Stream(broker, topic)
    stream.start()

    def applied() -> int:
        return sum(store.next_offsets(topic).values())

    for life in range(KILLS):
        before = applied()
        with detector(broker, topic, database_url, life, log) as process:
            eventually(lambda before=before: applied() > before, process, log)  # type: ignore[misc]
            time.sleep(chance.uniform(0, 0.4))
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
    stream.close()
    with detector(broker, topic, database_url, KILLS, log) as process:
        eventually(lambda: applied() == stream.sent, process, log)

    version = store.model_version("digits", "1")
    assert version is not None
    for at in range(WINDOWS):
        start = START + at * MINUTE
        stored = store.summaries(version.id, start, start + timedelta(minutes=1))
        assert set(stored) == {"conv1", "fc1"}
        for layer, summary in stored.items():
            assert summary.n == stream.expected[at, layer].n
            assert same(summary, stream.expected[at, layer])
    store.close()
    assert stream.messages > 200
