"""Work in steps, each paid for before the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from agent.budget.duty import Duty, Work
from agent.budget.shares import ModelKey

_STEP_SECONDS = 0.25
"""Of a wait, after which it is asked whether to stop."""


class Pace:
    """A piece of work that waits for its turn before each step. Belongs to one thread; a context manager.

    Its clock stands still while it waits, so that a limit on how long the work takes is one on the work alone.
    """

    def __init__(
        self,
        duty: Duty,
        work: Work,
        key: ModelKey,
        stopped: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``clock`` and ``sleep`` in seconds."""
        self._duty = duty
        self._work = work
        self._key = key
        self._stopped = stopped
        self._clock = clock
        self._sleep = sleep
        self._waited = 0.0
        self._since: float | None = None

    def __enter__(self) -> Pace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._charge()

    def step(self) -> bool:
        """Pays for the step that ends here and waits until the next may begin. True where the work is to stop."""
        self._charge()
        begin = self._clock()
        while not (stopped := self._stopped()) and (seconds := self._duty.delay(self._work)) > 0:
            self._sleep(min(seconds, _STEP_SECONDS))
        self._since = self._clock()
        self._waited += self._since - begin
        return stopped

    def clock(self) -> float:
        """Seconds of work, from an arbitrary beginning."""
        return self._clock() - self._waited

    def _charge(self) -> None:
        if self._since is not None:
            self._duty.charge(self._work, self._key, self._clock() - self._since)
            self._since = None
