"""How large a reference must be, so that it does not hide the shift that is looked for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.options import SECTION
from detector.domain.settings import MIN_EFFECT, MinEffect
from detector.statistics.design_effect import DesignEffect, worst
from detector.statistics.reference_error import REFERENCE_RISK
from detector.statistics.values import tolerance

LEAST_WINDOWS = 3
"""Of a reference: with fewer, requests that come in sessions raise false alarms."""


@dataclass(frozen=True, slots=True, config=SECTION)
class Need:
    """What a reference must be good for. Raises ValueError where it cannot be."""

    effect: float = Field(default=0.3, gt=0)
    """Smallest shift, Cohen's omega, that it must let show."""
    min_effect: MinEffect = MIN_EFFECT

    def __post_init__(self) -> None:
        if self.min_effect >= self.effect:
            raise ValueError(f"the effect {self.effect} must be above the tolerated one, {self.min_effect}")


def requests_needed(need: Need, design_effect: float) -> int:
    """Requests from which on a reference lets a shift of ``need.effect`` show, in six bins."""
    few, many = 1.0, 2.0
    bins = np.array([5])

    def hides(n: float) -> bool:
        base = np.array([n / design_effect])
        return bool(tolerance(need.min_effect, bins, base, REFERENCE_RISK)[0] >= need.effect)

    while hides(many):
        few, many = many, many * 2
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if hides(middle) else (few, middle)
    return int(many)


def shortfall(n: int, effects: Mapping[str, DesignEffect], need: Need) -> str | None:
    """Why ``n`` requests are too few, and how many more it takes; None where they are enough."""
    effect = worst(effects)
    needed = requests_needed(need, effect)
    if n >= needed:
        return _too_few_windows(n, max((effect.windows for effect in effects.values()), default=0))
    return (
        f"{n} requests are too few: with a design effect of {effect:.2f} a reference that lets a shift of omega "
        f"{need.effect:g} show needs {needed}; {needed - n} more, or state a larger --effect"
    )


def _too_few_windows(n: int, windows: int) -> str | None:
    if windows >= LEAST_WINDOWS:
        return None
    return (
        f"{n} requests in {windows} window{'s' * (windows != 1)} do not tell how much requests hang together: "
        f"take {LEAST_WINDOWS} windows at least, better ten"
    )
