"""From the outbox to Kafka: at least once, forgetting only what the broker has acknowledged."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from agent.delivery.heartbeats import Heartbeats
from agent.delivery.outbox import Item, Outbox
from agent.delivery.producer import DRAIN_SECONDS, Producer
from agent.metrics import AgentMetrics
from agent.supervise import Backoff, repeat
from agent.wire import encode

_log = structlog.get_logger()
_BATCH = 200
"""Messages on their way at one time."""
_IDLE_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0
"""How long the broker may take to acknowledge a batch."""
_FIRST_DELAY = 0.5
_LAST_DELAY = 30.0


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
        self._producer = Producer(bootstrap, topic, compression, api_version, agent_id, options or {})
        self._max_in_flight_bytes = max_in_flight_bytes
        self._metrics = metrics
        self._clock = clock
        self._backoff = Backoff(_FIRST_DELAY, _LAST_DELAY, jitter)
        self._failing: bool | None = None

    def run(self, outbox: Outbox, stop: threading.Event, heartbeats: Heartbeats | None = None) -> None:
        """Publish until `stop` is set, then try for two seconds more to send what waits; returns within five."""
        client_log = logging.getLogger("kafka")
        if client_log.level == logging.NOTSET:  # it reports every attempt to connect; `_report` says it once
            client_log.setLevel(logging.CRITICAL)
        try:
            repeat(lambda: self._publish(outbox, stop, heartbeats), stop, self._backoff, lambda e, _: self._report(e))
            self._drain(outbox, stop, heartbeats)
        finally:
            self._producer.disconnect()

    def _publish(self, outbox: Outbox, stop: threading.Event, heartbeats: Heartbeats | None) -> None:
        while not stop.is_set():
            if not self._round(outbox, stop, heartbeats):
                stop.wait(_IDLE_SECONDS)
            self._backoff.reset()

    def _drain(self, outbox: Outbox, stop: threading.Event, heartbeats: Heartbeats | None) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        try:
            while not self._failing and time.monotonic() < deadline and self._round(outbox, stop, heartbeats):
                pass
        except Exception as error:
            self._report(error)

    def _round(self, outbox: Outbox, stop: threading.Event, heartbeats: Heartbeats | None = None) -> bool:
        """Send the oldest messages and due heartbeats, and wait for the broker; False where there are none.

        Heartbeats follow the messages, so that what is on its way is not said to wait, but go before a backlog, and
        before the first message of all.

        Raises:
            Exception: some were not acknowledged; those that were have been forgotten all the same.
        """
        waiting = outbox.depth()[0]
        due = heartbeats if heartbeats is not None and heartbeats.due() else None
        if waiting == 0 and due is None:
            return False
        self._producer.connect()
        if due is not None and (waiting > _BATCH or due.unknown()):
            self._beat(due, stop)
            due = None
        sent: list[_Sent] = []
        failure: Exception | None = None
        for item in outbox.pending(_BATCH, self._max_in_flight_bytes):
            try:
                sent.append(_Sent(item, self._producer.send(item.key, item.payload, item.epoch, item.seq)))
            except MessageSizeTooLargeError as error:
                self._refuse(outbox, item, error)
            except KafkaError as error:
                failure = error
                break
        failure = self._settle(outbox, sent, stop) or failure
        if failure is not None:
            raise failure
        if due is not None:
            self._beat(due, stop)
        return True

    def _beat(self, heartbeats: Heartbeats, stop: threading.Event) -> None:
        """Send heartbeats; raises what the broker answers. They are not repeated: the next round makes new ones."""
        made = heartbeats.make()
        sent = [
            self._producer.send(envelope.key, encode(envelope), envelope.boot_epoch, envelope.seq) for envelope in made
        ]
        until = time.monotonic() + _PATIENCE_SECONDS
        for future in sent:
            self._producer.wait(future, until, stop)
            if not future.succeeded():
                error = future.exception if future.is_done else KafkaTimeoutError("no answer to a heartbeat in time")
                self._producer.disconnect()
                raise error
        heartbeats.delivered(made)
        self._report(None)

    def _settle(self, outbox: Outbox, sent: list[_Sent], stop: threading.Event) -> Exception | None:
        """Wait for the fate of all; forget the acknowledged. Returns why others were not, if any."""
        done: list[int] = []
        failure: Exception | None = None
        until = time.monotonic() + _PATIENCE_SECONDS
        for each in sent:
            if stop.is_set():
                until = min(until, time.monotonic() + DRAIN_SECONDS)
            self._producer.wait(each.future, until, stop)
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
            self._producer.disconnect()
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
