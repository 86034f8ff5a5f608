"""A sampler for each model version, so that each has a rate of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection

from agent.budget.shares import ModelKey
from agent.rates.sampling import Sampler


class Samplers:
    """Made when a version's first request comes; all begin at the rate that the user set."""

    def __init__(self, rate: float, make: Callable[[float], Sampler] = Sampler) -> None:
        self.rate = rate
        """The share that the user set, 0 to 1."""
        self._make = make
        self._samplers: dict[ModelKey, Sampler] = {}

    def of(self, key: ModelKey) -> Sampler:
        """A version's sampler. New ones are made by the intake thread alone."""
        found = self._samplers.get(key)
        if found is None:
            found = self._make(self.rate)
            self._samplers = {**self._samplers, key: found}  # others may be reading
        return found

    def items(self) -> dict[ModelKey, Sampler]:
        """All versions' samplers."""
        return self._samplers

    def keep(self, keys: Collection[ModelKey]) -> None:
        """Forgets all versions but these."""
        self._samplers = {key: sampler for key, sampler in self._samplers.items() if key in keys}
