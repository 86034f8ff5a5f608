"""Keeps loops alive: what fails is tried again, later each time, until it succeeds or the program is to stop.

Every wait ends at once with the stop event, and pods do not come back in step, however long the broker was away. A
library such as stamina sleeps deaf to the event, and at its longest wait it adds no jitter.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable

import structlog

log = structlog.get_logger()


class Backoff:
    """How long to wait after each failure: twice as long every time, less up to half of it by chance."""

    def __init__(self, first: float, longest: float, jitter: Callable[[], float] = random.random) -> None:
        """Seconds; ``jitter`` is uniform in [0, 1)."""
        self._first, self._longest, self._jitter = first, longest, jitter
        self._next = first

    def seconds(self) -> float:
        """For the failure that has just been."""
        delay, self._next = self._next, min(self._next * 2, self._longest)
        return delay * (0.5 + self._jitter() / 2)

    def reset(self) -> None:
        """Something succeeded: the next failure is a first one."""
        self._next = self._first


def repeat(
    attempt: Callable[[], object],
    stop: threading.Event,
    backoff: Backoff,
    failed: Callable[[Exception, float], None],
    on: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> bool:
    """Calls ``attempt`` until it returns; False where ``stop`` was set before.

    ``failed`` is told each error, one of ``on``, with the seconds until the next attempt. Other errors are raised.
    """
    while not stop.is_set():
        try:
            attempt()
        except on as error:
            seconds = backoff.seconds()
            failed(error, seconds)
            stop.wait(seconds)
        else:
            return True
    return False


def supervised(
    name: str,
    loop: Callable[[threading.Event], None],
    stop: threading.Event,
    *,
    failed: Callable[[], None] = lambda: None,
    backoff: Backoff | None = None,
) -> threading.Thread:
    """Starts ``loop(stop)`` in a thread of that name; after an exception, logged and told to ``failed``, again.

    The waits are of 1 to 60 seconds where ``backoff`` is not given.
    """

    def say(error: Exception, seconds: float) -> None:
        failed()
        log.error("loop.failed", loop=name, retry_seconds=round(seconds, 1), exc_info=error)

    thread = threading.Thread(
        target=repeat, args=(lambda: loop(stop), stop, backoff or Backoff(1.0, 60.0), say), name=name, daemon=True
    )
    thread.start()
    return thread


def join(threads: Iterable[threading.Thread], deadline: float) -> None:
    """Waits for all threads together until ``deadline``, a `time.monotonic`; those that go on are named in the log."""
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            log.warning("loop.still_running", loop=thread.name)
