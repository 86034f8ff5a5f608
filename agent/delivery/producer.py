"""The Kafka client, as the agent has it: idempotent, never blocking for long, and gone without a trace when closed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from agent.wire import SCHEMA_VERSION

_BLOCK_SECONDS = 1.5
"""How long any call into the client may block; with DRAIN_SECONDS and closing it keeps the end below five seconds."""
DRAIN_SECONDS = 2.0
"""What is still waited for once the agent is to stop."""


class Producer:
    """A connection that is made when it is needed, and made afresh after trouble."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        compression: str,
        api_version: tuple[int, ...] | None,
        agent_id: str,
        options: Mapping[str, Any],
    ) -> None:
        """The arguments are as for `agent.delivery.transport.Publisher`."""
        self._topic = topic
        self._agent_id = agent_id.encode()
        self._producer: Any = None
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
            **options,
        }

    def connect(self) -> None:
        """Connects, unless it is connected; raises what the client raises."""
        if self._producer is None:
            self._producer = self._connected()

    def send(self, key: str, payload: bytes, epoch: int, seq: int) -> Any:
        """Queues a message for its window's, or its heartbeat's, key; returns the future of its fate."""
        headers = [
            ("agent", self._agent_id),
            ("epoch", b"%d" % epoch),
            ("seq", b"%d" % seq),
            ("schema", b"%d" % SCHEMA_VERSION),
        ]
        return self._producer.send(self._topic, key=key.encode(), value=payload, headers=headers)

    def wait(self, future: Any, until: float, stop: threading.Event) -> None:
        """Wait for a future to be done, until a `time.monotonic`, or little longer than ``stop``."""
        while not future.is_done and time.monotonic() < until:
            if stop.is_set():
                until = min(until, time.monotonic() + DRAIN_SECONDS)
            with contextlib.suppress(Exception):  # still under way, or failed: told apart by the caller
                future.get(timeout=0.1)

    def disconnect(self) -> None:
        """Lets go of the broker, and of what it has not acknowledged."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.close(timeout=0.5)
        except KafkaError:
            # close() gives up on undelivered messages before it has ended its thread. They stay in the outbox.
            producer._sender.force_close()
            producer._sender.join(0.5)

    def _connected(self) -> Any:
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
