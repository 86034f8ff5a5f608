"""The budget of one agent: its time, its GPU memory and its RAM, with their metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agent.budget.duty import Duty, DutyLimits, Work
from agent.budget.memory import Arena
from agent.metrics import AgentMetrics

Owner = Literal["replay", "paired", "holdout", "calibration", "activations", "queues"]
"""Who holds memory: sessions of each kind of work, what all of them compute in, and what waits."""
OWNERS: tuple[Owner, ...] = ("replay", "paired", "holdout", "calibration", "activations", "queues")

_OTHER_SHARES = 2
"""Parts of the GPU besides one for each model version: for timing a new one, and for comparing."""
_ACTIVATIONS_SHARE = 4
"""Of RAM a quarter is for activations on the CPU."""


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """What the agent may take of its pod, all work and all models together."""

    duty: DutyLimits
    gpu_memory: int
    """Bytes of GPU memory for all sessions; the CUDA context comes on top."""
    memory: int
    """Bytes of RAM for weights, activations, queues and holdouts; the interpreter and its libraries come on top."""


class SessionMemory:
    """What sessions lease."""

    def __init__(self, gpu: Arena, ram: Arena) -> None:
        self.gpu = gpu
        self.ram = ram
        self.activations = ram.lease("activations", ram.limit // _ACTIVATIONS_SHARE).nbytes
        """Bytes for what all sessions on the CPU compute in."""
        self.versions = 1
        """How many model versions share the GPU; set by who follows the repository."""

    @property
    def gpu_share(self) -> int:
        """Bytes of GPU memory that one model version, or one kind of other work, may have."""
        return max(1, self.gpu.limit // (max(1, self.versions) + _OTHER_SHARES))


class Budget:
    """Owns time and memory. Built once; its parts are handed to those who work."""

    def __init__(
        self, limits: BudgetLimits, metrics: AgentMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        def on_work(work: Work, key: tuple[str, str], seconds: float) -> None:
            metrics.work_seconds_total.labels(work, *key).inc(seconds)

        def refused(place: str) -> Callable[[str], None]:
            return lambda owner: metrics.memory_refused_total.labels(place, owner).inc()

        deferred = metrics.work_deferred_total
        self.duty = Duty(limits.duty, clock, on_work, lambda work: deferred.labels(work).inc())
        self.gpu = Arena("GPU memory", limits.gpu_memory, "--gpu-memory-mib", refused("gpu"))
        self.ram = Arena("RAM", limits.memory, "--memory-mib", refused("ram"))
        self.sessions = SessionMemory(self.gpu, self.ram)
        metrics.watch_duty(self.duty.recent)
        for place, arena in (("gpu", self.gpu), ("ram", self.ram)):
            metrics.watch_memory(place, arena.limit, arena.used, OWNERS)
