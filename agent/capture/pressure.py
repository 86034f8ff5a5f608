"""How large a batch the device takes now, and whether it is the GPU. Pure: time is an argument, in seconds.

GPU, batch 32 --out of memory--> GPU, batch 16 --> ... --> GPU, batch 1 --out of memory--> CPU, batch 32
     ^                                |                         ^                              |
     '------ doubled, after a while --'                         '--- tried again, ever later --'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Step = Literal["smaller", "cpu", "give_up"]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds to wait before more is asked of the device again."""

    grow: float = 30.0
    """Before the batch is doubled after it was halved; doubled itself each time that memory runs out."""
    retry: float = 60.0
    """Before the GPU is tried again after it was given up; doubled itself each time that it fails."""
    longest: float = 3600.0
    """Neither wait becomes longer."""


class Pressure:
    """The state of one model version's device; ``most`` and ``least`` are requests in a batch."""

    def __init__(self, most: int, least: int, *, on_gpu: bool, patience: Patience | None = None) -> None:
        """``least`` equals ``most`` where the model takes one batch size only."""
        if not 1 <= least <= most:
            raise ValueError(f"a batch of {least} to {most} requests is none")
        self._most = most
        self._least = least
        self._patience = patience or Patience()
        self._batch = most
        self._on_gpu = on_gpu
        self._grow_wait = self._patience.grow
        self._retry_wait = self._patience.retry
        self._grow_at = 0.0
        self._retry_at = 0.0
        self._gave_up_gpu = False

    @property
    def batch(self) -> int:
        """The largest batch to try."""
        return self._batch

    @property
    def least(self) -> int:
        """The smallest batch that the model takes."""
        return self._least

    @property
    def limited(self) -> bool:
        """Whether memory ran out lately: then what a batch took is given back after it."""
        return self._batch < self._most

    @property
    def on_gpu(self) -> bool:
        return self._on_gpu

    def failed(self, size: int, now: float, *, memory: bool) -> Step:
        """A batch of ``size`` failed for the device's sake; ``memory`` where the device had no room for it.

        Returns what to do with the same requests: try them in smaller batches, try them on the CPU, or give them up,
        since not even the CPU has room for the smallest batch.
        """
        if memory and size > self._least:
            self._batch = max(self._least, min(size, self._batch) // 2)
            self._grow_at = now + self._grow_wait
            self._grow_wait = min(2 * self._grow_wait, self._patience.longest)
            return "smaller"
        if not self._on_gpu:
            return "give_up"
        self._on_gpu, self._gave_up_gpu = False, True
        self._batch = self._most
        self.refused(now)
        return "cpu"

    def ran(self, now: float) -> None:
        """A batch ran: once the wait is over its limit is doubled, or all is forgiven where that is the full batch."""
        if now < self._grow_at:
            return
        if self._batch < self._most:
            self._batch = min(self._most, 2 * self._batch)
        elif self._on_gpu or not self._gave_up_gpu:
            self._grow_wait = self._patience.grow
            self._retry_wait = self._patience.retry
        self._grow_at = now + self._grow_wait

    def due(self, now: float) -> bool:
        """Whether the GPU was given up and should be tried again."""
        return self._gave_up_gpu and not self._on_gpu and now >= self._retry_at

    def returned(self, now: float) -> None:
        """There is a session on the GPU again; it begins with the smallest batch."""
        self._on_gpu = True
        self._batch = self._least
        self._grow_at = now + self._grow_wait

    def refused(self, now: float) -> None:
        """The GPU cannot be had now."""
        self._retry_at = now + self._retry_wait
        self._retry_wait = min(2 * self._retry_wait, self._patience.longest)
