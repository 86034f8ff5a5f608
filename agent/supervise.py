"""Keeps the agent's loops alive: a loop that fails is logged and started again, later each time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable

import structlog

log = structlog.get_logger()
_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 60.0


def supervised(name: str, loop: Callable[[threading.Event], None], stop: threading.Event) -> threading.Thread:
    """Starts ``loop(stop)`` in a thread of that name; after an exception it starts again with jittered backoff."""

    def run() -> None:
        pause = _FIRST_SECONDS
        while not stop.is_set():
            try:
                loop(stop)
                return
            except Exception:
                log.exception("loop.failed", loop=name, retry_seconds=round(pause, 1))
                stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
                pause = min(pause * 2, _LONGEST_SECONDS)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def join(threads: Iterable[threading.Thread], deadline: float) -> None:
    """Waits for all threads together until ``deadline``, a `time.monotonic`; those that go on are named in the log."""
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            log.warning("loop.still_running", loop=thread.name)
