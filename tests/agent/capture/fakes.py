"""A GPU of this much room that is a CPU session in truth, and an observer that takes notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.instrument import Instrumented
from agent.instrument.pooled import Pooled
from agent.replay import Device, DeviceError, OutOfMemory, Replayer

BROKEN = "CUDA failure 700: an illegal memory access was encountered"
NO_ROOM = "Failed to allocate memory for requested buffer of size 939524096"


class GpuDevice(Device):
    """Says that there is a GPU until it is told to use the CPU."""

    __slots__ = ()

    @property
    def has_gpu(self) -> bool:
        return self.provider != "cpu"


class Gpu:
    """Builds replayers; ``room`` is how many requests fit in a batch, 0 for not even the model."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.broken = False
        self.batches: list[tuple[str, int]] = []
        """Where batches were tried, and of how many requests."""
        self.shrunk: list[bool] = []

    def build(self, device: Device, instrumented: Instrumented) -> Replayer:
        on_gpu = device.provider != "cpu"
        if on_gpu and self.room == 0:
            raise OutOfMemory(NO_ROOM)
        return _OnGpu(self, on_gpu, instrumented)


class _OnGpu(Replayer):
    def __init__(self, gpu: Gpu, on_gpu: bool, instrumented: Instrumented) -> None:
        super().__init__(instrumented, threads=1, gpu_mem_limit=1 << 30, provider="cpu")
        self._gpu = gpu
        self._on_gpu = on_gpu

    @property
    def provider(self) -> str:
        return "CUDAExecutionProvider" if self._on_gpu else "CPUExecutionProvider"

    def _bound(self, inputs: dict[str, NDArray[Any]], shrink: bool) -> list[NDArray[Any]]:
        return self._unbound(inputs)

    def run(self, inputs: dict[str, NDArray[Any]], *, shrink: bool = False) -> dict[str, Pooled]:
        rows = len(next(iter(inputs.values())))
        self._gpu.batches.append(("gpu" if self._on_gpu else "cpu", rows))
        self._gpu.shrunk.append(shrink)
        if self._on_gpu and self._gpu.broken:
            raise DeviceError(BROKEN)
        if self._on_gpu and rows > self._gpu.room:
            raise OutOfMemory(NO_ROOM)
        return super().run(inputs)


class Notes:
    """An observer of an Engine."""

    def __init__(self) -> None:
        self.out: list[int] = []
        self.moves: list[tuple[str, bool]] = []
        self.missing: list[dict[str, str]] = []

    def out_of_memory(self, batch: int, reason: str) -> None:
        self.out.append(batch)

    def moved(self, provider: str, reason: str, *, gave_up_gpu: bool) -> None:
        self.moves.append((provider.removesuffix("ExecutionProvider"), gave_up_gpu))

    def absent(self, probes: Mapping[str, str]) -> None:
        self.missing.append(dict(probes))


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def images(count: int) -> dict[str, NDArray[Any]]:
    """Inputs of small_cnn."""
    return {"image": np.random.default_rng(count).normal(size=(count, 1, 8, 8)).astype(np.float32)}
