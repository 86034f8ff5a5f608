"""One session for each group of probes, each in its turn.

Where all groups' sessions fit into memory they take turns batch by batch. Else, or once the agent's memory refuses one,
only one lives, and a turn is so long that building the next costs little beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from agent.capture.groups import ProbeGroup
from agent.replay import NoMemory

_BUILD_SHARE_OF_REPLAY = 0.05
_BUILD_SHARE_OF_TIME = 0.01


class _Closable(Protocol):
    """Anything; a session is closed by forgetting it."""


S = TypeVar("S", bound=_Closable)


def turn_is_over(build_seconds: float, busy_seconds: float, elapsed_seconds: float) -> bool:
    """Whether building the next session would cost 5 % of the replay, or 1 % of the time, of this turn at most.

    The second bounds how long a group waits where traffic is thin and replay therefore rare.
    """
    return (
        build_seconds <= busy_seconds * _BUILD_SHARE_OF_REPLAY
        or build_seconds <= elapsed_seconds * _BUILD_SHARE_OF_TIME
    )


class Rotation(Generic[S]):
    """The groups' sessions. Not thread-safe: it belongs to the thread that replays."""

    def __init__(
        self,
        groups: Sequence[ProbeGroup],
        build: Callable[[ProbeGroup], S],
        *,
        resident: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Builds the first group's session, and raises what that raises; the others' when they are first needed."""
        self._groups = tuple(groups)
        self._build = build
        self._resident = resident or len(self._groups) == 1
        self._clock = clock
        self._sessions: dict[int, S] = {}
        self._turn = 0
        self._build_seconds = 0.0
        self._begin = clock()
        self.current()

    @property
    def group(self) -> ProbeGroup:
        """The probes whose turn it is."""
        return self._groups[self._turn]

    def current(self) -> S:
        """The session of the group whose turn it is, built where there is none; raises what building raises."""
        if self._turn not in self._sessions:
            if not self._resident:
                self._sessions.clear()  # before the new one is built: the memory is for one
            begin = self._clock()
            self._sessions[self._turn] = self._built()
            self._begin = self._clock()
            self._build_seconds = self._begin - begin
        return self._sessions[self._turn]

    def _built(self) -> S:
        """A session; where there is no memory for one beside the others, they live one at a time from now on."""
        try:
            return self._build(self.group)
        except NoMemory:
            if not self._sessions:
                raise
        self._sessions.clear()
        self._resident = False
        return self._build(self.group)

    def release(self) -> None:
        """Forgets every session; they are built again when they are needed."""
        self._sessions.clear()

    def ran(self, busy_seconds: float) -> None:
        """The current session has worked for ``busy_seconds`` in this turn; the turn passes on when it is over."""
        if self._resident or turn_is_over(self._build_seconds, busy_seconds, self._clock() - self._begin):
            self._turn = (self._turn + 1) % len(self._groups)
