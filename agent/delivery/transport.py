"""From the outbox to Kafka: at least once, forgetting only what the broker has acknowledged."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from agent.delivery.outbox import Item, Outbox
from agent.metrics import AgentMetrics
from agent.supervise import Backoff, repeat
from agent.wire import SCHEMA_VERSION

_log = structlog.get_logger()
_BATCH = 200
"""Messages on their way at one time."""
_IDLE_SECONDS = 0.2
_FIRST_DELAY = 0.5
_LAST_DELAY = 30.0
_BLOCK_SECONDS = 1.5
"""How long any call into the client may block; with _DRAIN_SECONDS and closing it keeps the end below five seconds."""
_DRAIN_SECONDS = 2.0


@dataclass(slots=True)
class _Sent:
    item: Item
    future: Any


class Publisher:
    """Sends what is in an outbox. An unreachable broker is waited for, however long it takes."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        compression: str,
        api_version: tuple[int, ...] | None,
        max_in_flight_bytes: int,
        metrics: AgentMetrics,
        *,
        agent_id: str,
        options: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is connected before `run`.

        Args:
            bootstrap: "host:port", several separated by commas.
            topic: where windows go.
            compression: "gzip", "zstd" or "none".
            api_version: None to ask the broker.
            max_in_flight_bytes: payload on its way at one time (the client itself knows no bound).
            metrics: where success and failure are counted.
            agent_id: for the message header.
            options: further settings of the Kafka client, such as those of TLS and SASL.
            clock: Unix seconds.
            jitter: uniform in [0, 1).
        """
        self._topic = topic
        self._max_in_flight_bytes = max_in_flight_bytes
        self._metrics = metrics
        self._agent_id = agent_id.encode()
        self._clock = clock
        self._backoff = Backoff(_FIRST_DELAY, _LAST_DELAY, jitter)
        self._producer: Any = None
        self._failing: bool | None = None
        self._settings: dict[str, Any] = {
            "bootstrap_servers": bootstrap.split(","),
            "client_id": f"reluscope-agent-{agent_id}",
            "compression_type": None if compression == "none" else compression,
            "api_version": api_version,
            "enable_idempotence": True,
            "acks": "all",
            "linger_ms": 5,
            "max_request_size": 16 << 20,  # the broker's own limit decides, after compression
            "max_block_ms": int(_BLOCK_SECONDS * 1000),
            "bootstrap_timeout_ms": int(_BLOCK_SECONDS * 1000),
            "request_timeout_ms": 10_000,
            "delivery_timeout_ms": 20_000,
            "reconnect_backoff_max_ms": 5_000,
            "metrics_enabled": False,
            **(options or {}),
        }

    def run(self, outbox: Outbox, stop: threading.Event) -> None:
        """Publish until `stop` is set, then try for two seconds more to send what waits; returns within five."""
        client_log = logging.getLogger("kafka")
        if client_log.level == logging.NOTSET:  # it reports every attempt to connect; `_report` says it once
            client_log.setLevel(logging.CRITICAL)
        try:
            repeat(lambda: self._publish(outbox, stop), stop, self._backoff, lambda error, _: self._report(error))
            self._drain(outbox, stop)
        finally:
            self._disconnect()

    def _publish(self, outbox: Outbox, stop: threading.Event) -> None:
        while not stop.is_set():
            if not self._round(outbox, stop):
                stop.wait(_IDLE_SECONDS)
            self._backoff.reset()

    def _drain(self, outbox: Outbox, stop: threading.Event) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        try:
            while not self._failing and time.monotonic() < deadline and self._round(outbox, stop):
                pass
        except Exception as error:
            self._report(error)

    def _round(self, outbox: Outbox, stop: threading.Event) -> bool:
        """Send the oldest messages and wait for the broker; False where there are none.

        Raises:
            Exception: some were not acknowledged; those that were have been forgotten all the same.
        """
        if outbox.depth()[0] == 0:
            return False
        if self._producer is None:
            self._producer = self._connect()
        sent: list[_Sent] = []
        failure: Exception | None = None
        for item in outbox.pending(_BATCH, self._max_in_flight_bytes):
            try:
                sent.append(_Sent(item, self._send(item)))
            except MessageSizeTooLargeError as error:
                self._refuse(outbox, item, error)
            except KafkaError as error:
                failure = error
                break
        failure = self._settle(outbox, sent, stop) or failure
        if failure is not None:
            raise failure
        return True

    def _connect(self) -> Any:
        made: list[Any] = []

        def make_client(**settings: Any) -> Any:
            made.append(KafkaProducer.DEFAULT_CONFIG["kafka_client"](**settings))
            return made[-1]

        try:
            return KafkaProducer(kafka_client=make_client, **self._settings)
        except BaseException:
            # The constructor asks the broker for its version, and leaves its sockets open if it fails.
            for client in made:
                client.close()
            raise

    def _send(self, item: Item) -> Any:
        headers = [
            ("agent", self._agent_id),
            ("epoch", b"%d" % item.epoch),
            ("seq", b"%d" % item.seq),
            ("schema", b"%d" % SCHEMA_VERSION),
        ]
        return self._producer.send(self._topic, key=item.key.encode(), value=item.payload, headers=headers)

    def _settle(self, outbox: Outbox, sent: list[_Sent], stop: threading.Event) -> Exception | None:
        """Wait for the fate of all; forget the acknowledged. Returns why others were not, if any."""
        done: list[int] = []
        failure: Exception | None = None
        patience = time.monotonic() + 30
        for each in sent:
            while not each.future.is_done and time.monotonic() < patience:
                if stop.is_set():
                    patience = min(patience, time.monotonic() + _DRAIN_SECONDS)
                with contextlib.suppress(Exception):  # still under way, or failed: told apart below
                    each.future.get(timeout=0.1)
            if not each.future.is_done:
                failure = KafkaTimeoutError("the broker has not acknowledged in time")
            elif each.future.succeeded():
                done.append(each.item.rowid)
            elif isinstance(each.future.exception, MessageSizeTooLargeError):
                self._refuse(outbox, each.item, each.future.exception)
            else:
                failure = each.future.exception
        if done:
            outbox.acknowledge(done)
            self._metrics.published_total.inc(len(done))
            self._metrics.last_publish_timestamp_seconds.set(self._clock())
            if failure is None:
                self._report(None)
        if failure is not None:  # the client may still hold these, or have lost its sequence: begin afresh
            self._disconnect()
        return failure

    def _refuse(self, outbox: Outbox, item: Item, error: Exception) -> None:
        """Give a message up that no broker of this setting will ever take, so that it holds up nothing else."""
        _log.error("publish.message_refused", key=item.key, size=len(item.payload), seq=item.seq, error=str(error))
        self._metrics.publish_errors_total.inc()
        self._metrics.outbox_dropped_total.inc()
        outbox.acknowledge([item.rowid])

    def _report(self, error: Exception | None) -> None:
        """Count a failure; log only when things change between good and bad."""
        if error is not None:
            self._metrics.publish_errors_total.inc()
        failing = error is not None
        if failing != self._failing:
            if error is not None:
                _log.warning("publish.failing", topic=self._topic, error=f"{type(error).__name__}: {error}")
            else:
                _log.info("publish.connected", topic=self._topic)
        self._failing = failing

    def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.close(timeout=0.5)
        except KafkaError:
            # close() gives up on undelivered messages before it has ended its thread. They stay in the outbox.
            producer._sender.force_close()
            producer._sender.join(0.5)
