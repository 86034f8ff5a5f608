"""Fair shares among model versions. Pure.

Turns follow start-time fair queueing (Goyal, Vin, Cheng 1996): the version that has used least goes first, and one that
was idle comes back at the level of those that were not, so that nobody saves up turns and nobody pays for having been
idle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

ModelKey = tuple[str, str]
"""(model, version): what shares are fair among."""


@dataclass(slots=True)
class _Used:
    seconds: float
    waiting: bool


class FairShares:
    """Whose turn it is, by the time that each has used. Belongs to one thread."""

    def __init__(self) -> None:
        self._used: dict[ModelKey, _Used] = {}
        self._level = 0.0

    def choose(self, waiting: Collection[ModelKey]) -> ModelKey:
        """Of the versions that wait, in order of their arrival, the one that has used least time."""
        for key, used in list(self._used.items()):
            if key not in waiting:
                used.waiting = False
                if used.seconds <= self._level:  # as one that was never seen
                    del self._used[key]
        for key in waiting:
            used = self._used.setdefault(key, _Used(self._level, False))
            if not used.waiting:
                used.seconds, used.waiting = max(used.seconds, self._level), True
        chosen = min(waiting, key=lambda key: self._used[key].seconds)
        self._level = self._used[chosen].seconds
        return chosen

    def charge(self, key: ModelKey, seconds: float) -> None:
        """A version's turn took so long."""
        self._used.setdefault(key, _Used(self._level, False)).seconds += seconds


def level(demands: Mapping[ModelKey, float], capacity: float) -> float:
    """The most that each may use, so that all together keep ``capacity``: what the light leave goes to the heavy.

    Where all demands together fit, the largest may grow into what is left.

    >>> level({("a", "1"): 0.1, ("b", "1"): 5.0, ("c", "1"): 5.0}, 1.0)
    0.45
    """
    left = capacity
    rising = sorted(demands.values())
    for place, demand in enumerate(rising):
        share = left / (len(rising) - place)
        if demand > share or place == len(rising) - 1:
            return share
        left -= demand
    return capacity
