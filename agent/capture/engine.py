"""Runs batches of one model version: the probes whose turn it is, on the device that has room for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from agent.capture.groups import ProbeGroup
from agent.capture.pressure import Patience, Pressure
from agent.capture.rotation import Rotation
from agent.capture.settings import CaptureSettings
from agent.instrument import Instrumented
from agent.instrument.pooled import Pooled
from agent.replay import CPU, Device, DeviceError, NoMemory, OutOfMemory, Port, Replayer, ReplayError, batching
from agent.replay.batching import Tensors

Build = Callable[[Device, Instrumented], Replayer]


class Observer(Protocol):
    """Is told what becomes of the device; called in the thread that replays."""

    def out_of_memory(self, batch: int, reason: str) -> None:
        """A batch of that many requests did not fit, or, where it is 0, not even the model."""

    def moved(self, provider: str, reason: str, *, gave_up_gpu: bool) -> None:
        """Replay goes on with that provider."""

    def absent(self, probes: Mapping[str, str]) -> None:
        """A batch had no values of these probes: reasons by name."""


class EngineClosed(Exception):
    """The version was replaced or removed while its requests waited."""


class Engine:
    """Looks like one Replayer. `run` belongs to the thread that replays; properties and `close` are for any thread."""

    def __init__(
        self,
        observed: Instrumented,
        groups: Sequence[ProbeGroup],
        settings: CaptureSettings,
        observer: Observer,
        *,
        build: Build = Replayer.on,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Builds the first session: on the settings' device, or, where that fails, on the CPU.

        Raises ReplayError where onnxruntime cannot load the model at all.
        """
        self._observed = observed
        self._groups = tuple(groups)
        self._settings = settings
        self._observer = observer
        self._build = build
        self._clock = clock
        self._busy = 0.0
        self._running = threading.Lock()
        self._closed = False
        failure: DeviceError | None = None
        try:
            self._rotation = self._rotate(settings.device)
        except DeviceError as error:
            if not settings.device.has_gpu:
                raise
            failure = error
            self._rotation = self._rotate(settings.device.on_cpu())
        session = self._rotation.current()
        self.provider = session.provider
        """The execution provider in use, such as CUDAExecutionProvider."""
        self.inputs: tuple[Port, ...] = session.inputs
        self.outputs: tuple[Port, ...] = session.outputs
        self.batch_size = session.batch_size
        """The only batch size the model takes; None where it is free."""
        most = self.batch_size or settings.max_batch
        on_gpu = failure is not None or self.provider != CPU
        self._pressure = Pressure(most, self.batch_size or 1, on_gpu=on_gpu, patience=patience)
        if failure is not None:
            self._pressure.failed(self._pressure.least, clock(), memory=False)
            self._tell(failure, batch=0)

    @property
    def groups(self) -> int:
        """Into how many groups the probes are parted."""
        return len(self._groups)

    def run(self, inputs: Tensors) -> dict[str, Pooled]:
        """Pooled values of the probes whose turn it is, by name, for one batch of any size.

        What the device has no room for is run again in smaller batches, then on the CPU. Raises ReplayError where the
        requests themselves cannot be run, or not even the CPU has room for one of them, EngineClosed after `close`.
        """
        with self._running:
            if self._closed:
                raise EngineClosed
            return self._run(inputs)

    def close(self) -> None:
        """Frees the sessions as soon as no batch is running on them."""
        with self._running:
            self._closed = True
            self._rotation.release()

    def _run(self, inputs: Tensors) -> dict[str, Pooled]:
        if self._pressure.due(self._clock()):
            self._try_gpu()
        axes = self._observed.batch_axes
        requests, done = batching.count(inputs, axes), 0
        group, parts = self._rotation.group, []
        begin = self._clock()
        while done < requests:
            stop = min(requests, done + self._pressure.batch)
            part = batching.cut(inputs, axes, done, stop) if (done, stop) != (0, requests) else inputs
            try:
                parts.append(self._rotation.current().run(part, shrink=self._pressure.limited))
            except DeviceError as error:
                self._yield(error, stop - done, group)
                continue
            if misfits := self._rotation.current().misfits:
                self._observer.absent(misfits)
            self._pressure.ran(self._clock())
            done = stop
        self._busy += self._clock() - begin
        self._rotation.ran(self._busy)
        if self._rotation.group != group:
            self._busy = 0.0
        return _joined(parts)

    def _yield(self, error: DeviceError, size: int, group: ProbeGroup) -> None:
        """Makes room for the same requests to be run again; raises ``error`` where there is none to make."""
        too_large = isinstance(error, OutOfMemory) and not isinstance(error, NoMemory)
        step = self._pressure.failed(size, self._clock(), memory=too_large)
        if step == "give_up":
            raise error
        if step == "cpu":
            self._rotation.release()  # its memory first
            self._rotation = self._rotate(self._settings.device.on_cpu(), group)
            self.provider = self._rotation.current().provider
            self._tell(error, batch=size)
        elif isinstance(error, OutOfMemory):
            self._observer.out_of_memory(size, str(error))

    def _tell(self, error: DeviceError, batch: int) -> None:
        if isinstance(error, OutOfMemory) and not isinstance(error, NoMemory):
            self._observer.out_of_memory(batch, str(error))
        self._observer.moved(self.provider, str(error), gave_up_gpu=True)

    def _try_gpu(self) -> None:
        """Goes back to the GPU where it has room again, else stays on the CPU for longer."""
        try:
            rotation = self._rotate(self._settings.device, self._rotation.group)
        except ReplayError:
            self._pressure.refused(self._clock())
            return
        provider = rotation.current().provider
        if provider == CPU:
            self._pressure.refused(self._clock())
            return
        self._rotation, self.provider = rotation, provider
        self._pressure.returned(self._clock())
        self._observer.moved(provider, "the GPU takes the model again", gave_up_gpu=False)

    def _rotate(self, device: Device, first: ProbeGroup | None = None) -> Rotation[Replayer]:
        """Sessions on a device, beginning with the group whose turn it is."""
        count = len(self._groups)
        place = self._groups.index(first) if first is not None else 0
        weights = self._observed.weight_bytes * count
        resident = weights <= self._settings.session_memory
        if device.has_gpu:
            # Activations need room beside the weights; and the sessions keep the limit together.
            resident = resident and 2 * weights <= device.gpu_mem_limit
            device = device.sharing(count if resident else 1)
        # No reference to the engine in here: in a cycle, sessions would outlive it until the garbage collector comes.
        build, observed = self._build, self._observed
        return Rotation(
            self._groups[place:] + self._groups[:place],
            lambda names: build(device, observed.subset(names)),
            resident=resident,
            clock=self._clock,
        )


def _joined(parts: list[dict[str, Pooled]]) -> dict[str, Pooled]:
    """One batch of several; a probe that one of them lacks is left out."""
    if len(parts) == 1:
        return parts[0]
    names = [name for name in parts[0] if all(name in part for part in parts)] if parts else []
    return {
        name: Pooled(
            np.concatenate([part[name].mean for part in parts]),
            np.concatenate([part[name].maximum for part in parts]),
            np.concatenate([part[name].fraction for part in parts]),
        )
        for name in names
    }
