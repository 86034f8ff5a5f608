"""What the agent may take of its pod, as the user states it; the duty cycle itself is with the rates."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.options import MIB, SECTION, Option


@dataclass(frozen=True, slots=True, config=SECTION)
class BudgetSettings:
    """Limits of all models and all work together."""

    background_share: float = Field(default=0.2, ge=0.01, le=1)
    """Of --duty-cycle, what is kept for work other than replay while replay could use all."""
    gpu_memory: Annotated[int, Option("gpu_memory_mib", unit=MIB)] = Field(default=6144 * MIB, ge=1)
    """GPU memory for the sessions of all models and all work together."""
    memory: Annotated[int, Option("memory_mib", unit=MIB)] = Field(default=8192 * MIB, ge=1)
    """RAM for the weights, activations, holdouts and queues of all models and all work together."""
