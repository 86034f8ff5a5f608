"""How often p-values fall at or below a level, against what chance allows a valid test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, poisson

from agent.summary.histogram import Floats

LEVELS = (0.05, 1e-3, 1e-5)
CONFIDENCE = 1e-4
"""Chance that a valid test's rate exceeds its limit."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often p-values were at or below a level."""

    level: float
    rejected: int
    trials: int

    @property
    def limit(self) -> int:
        """What a valid test exceeds once in ten thousand runs."""
        return int(binom.isf(CONFIDENCE, self.trials, self.level))

    @property
    def valid(self) -> bool:
        """Whether the rate is within the limit or below."""
        return self.rejected <= self.limit

    @property
    def share(self) -> float:
        return self.rejected / self.trials

    def __str__(self) -> str:
        return f"{self.share:.2e} at {self.level:g} (limit {self.limit / self.trials:.2e})"


def most_alarms(expected: float) -> int:
    """The limits of chance for a budget that allows so many alarms."""
    return int(poisson.isf(CONFIDENCE, expected))


def rates(p_values: Floats, levels: tuple[float, ...] = (0.05, 1e-3)) -> list[Rate]:
    """Rejections at each level."""
    return [Rate(level, int(np.count_nonzero(p_values <= level)), p_values.size) for level in levels]
