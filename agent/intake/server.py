"""Runs the intake's application in uvicorn, in a thread of the agent."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Generator

import structlog
import uvicorn
from starlette.applications import Starlette

from agent.intake.connections import Connections

_log = structlog.get_logger()


def serve(
    app: Starlette,
    host: str,
    port: int,
    stop: threading.Event,
    on_listening: Callable[[int], None] = lambda port: None,
    connections: Connections | None = None,
) -> None:
    """Serve until `stop` is set; blocks the calling thread, which may be any. Signals are left alone.

    Args:
        app: what `build_app` returned.
        host: address to listen on.
        port: 0 for any free one.
        stop: looked at ten times a second.
        on_listening: called with the port once requests are taken.
        connections: their bounds, and who is told of those that were closed.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listener:
        config = uvicorn.Config(
            app,
            http=(connections or Connections()).protocol,  # type: ignore[arg-type]  # it calls what makes a protocol
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=2,
        )
        # What is not HTTP is counted; one line for each would let anybody fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        bound = int(listener.getsockname()[1])
        _log.info("intake.listening", host=host, port=bound)
        _Server(config, stop, lambda: on_listening(bound)).run(sockets=[listener])
    _log.info("intake.stopped", host=host, port=bound)


class _Server(uvicorn.Server):
    """uvicorn, ended by an event instead of by signals."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._stop.is_set()
