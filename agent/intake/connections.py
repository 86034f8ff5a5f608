"""Keeps connections from starving the agent: how many there are, how long a request takes, how large its head is.

uvicorn bounds neither: clients that never end their request, by mistake or by design, would hold every file that the
process may open, and headers without end all of its memory. Then neither Kafka nor the repository could be reached.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Reason = Literal["too_many", "slow_request", "large_head", "not_http"]
"""Why a connection was closed; a metric label: bounded."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What all connections, and each, may take."""

    most: int = 1024
    """At one time."""
    head_bytes: int = 64 << 10
    """Of a request, besides its body: its line, headers and trailers, and what parts the body into chunks."""
    request_seconds: float = 20.0
    """From the connection, or the first byte of a later request, to the end of the request."""

    def most_now(self) -> int:
        """At most half of the files that the process may open: the rest is for all other work."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return self.most if files == resource.RLIM_INFINITY else max(1, min(self.most, files // 2))


@dataclass(slots=True)
class Connections:
    """All that are open now. Belongs to the event loop."""

    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    on_closed: Callable[[Reason], None] = lambda reason: None
    """Told of each that was closed for its own fault, or for want of room."""
    _open: dict[BoundedProtocol, None] = field(default_factory=dict)
    """The one that began to wait for a request longest ago first."""

    def add(self, one: BoundedProtocol) -> None:
        """Takes in one that waits; where there is no room, the one that has waited longest goes."""
        self._open.pop(one, None)
        self._open[one] = None
        if len(self._open) > self.limits.most_now():
            waiting = next((other for other in self._open if other.waits), one)
            waiting.end("too_many")

    def remove(self, one: BoundedProtocol) -> None:
        """It is closed."""
        self._open.pop(one, None)

    def protocol(self, *args: Any, **kwargs: Any) -> BoundedProtocol:
        """Makes one for a new connection, as uvicorn asks for it."""
        return BoundedProtocol(self, *args, **kwargs)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's, with bounds."""

    def __init__(self, connections: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = connections
        self._timer: asyncio.TimerHandle | None = None
        self._beside = 0
        """Bytes of the request that is coming, less those of its body."""
        self._body = 0
        self._ended = False

    @property
    def waits(self) -> bool:
        """Whether nothing is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def end(self, reason: Reason) -> None:
        """Closes the connection at once."""
        if not self._ended:
            self._ended = True
            self._bounds.remove(self)
            self._bounds.on_closed(reason)
            self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()
        self._bounds.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        self._bounds.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._beside += len(data)
        super().data_received(data)
        # Where the body comes in small chunks, what parts them is about as much as itself.
        if self._beside > self._bounds.limits.head_bytes + self._body:
            self.end("large_head")

    def send_400_response(self, msg: str) -> None:
        self._bounds.on_closed("not_http")
        super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self._body = 0
        self._expect()
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self._beside -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._beside = self._body = 0
        self._forget_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._ended and not self.transport.is_closing():
            self._bounds.add(self)

    def _expect(self) -> None:
        """A request has to be there in time."""
        self._forget_timer()
        self._timer = self.loop.call_later(self._bounds.limits.request_seconds, self.end, "slow_request")

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
