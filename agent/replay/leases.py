"""What a session takes of the agent's memory, from before it is built until it is gone."""

from __future__ import annotations

import weakref
from dataclasses import replace

from agent.budget.memory import Arena, Lease, NoRoom
from agent.replay.errors import NoMemory
from agent.replay.providers import Device

_WORKING = 64 << 20
"""Least GPU memory beside the weights that a session can begin to work with."""


class SessionLeases:
    """Leases for one session: of RAM for its weights, which pass through it on their way to a GPU too, and of the GPU.

    `device` has the GPU memory that was granted as its limit. Raises NoMemory where there is none to be had.
    """

    def __init__(self, device: Device, weight_bytes: int) -> None:
        self.device = device
        self._ram: Lease | None = None
        self._gpu: Lease | None = None
        if device.memory is None:
            return
        self._ram = _lease(device.memory.ram, device, weight_bytes)
        if device.has_gpu:
            try:
                self._gpu = _lease(device.memory.gpu, device, device.gpu_mem_limit, weight_bytes + _WORKING)
            except NoMemory:
                self.release()
                raise
            self.device = replace(device, gpu_mem_limit=self._gpu.nbytes)

    def keep(self, session: object, *, on_gpu: bool) -> None:
        """Leaves to the session what it needs, until it is collected, and gives the other back."""
        needed, other = (self._gpu, self._ram) if on_gpu else (self._ram, self._gpu)
        if other is not None:
            other.release()
        if needed is not None:
            weakref.finalize(session, needed.release)

    def release(self) -> None:
        """Gives all of it back."""
        for lease in (self._ram, self._gpu):
            if lease is not None:
                lease.release()


def _lease(arena: Arena, device: Device, most: int, least: int | None = None) -> Lease:
    try:
        return arena.lease(device.owner, most, least)
    except NoRoom as error:
        raise NoMemory(str(error)) from error
