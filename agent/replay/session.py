"""One onnxruntime session on an instrumented model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agent.budget.owner import Owner, SessionMemory
from agent.datatypes import RUNTIME
from agent.instrument import Instrumented, SessionModel
from agent.instrument.pooled import Pooled
from agent.replay import batching
from agent.replay.batching import Tensors
from agent.replay.errors import DeviceError, replay_error
from agent.replay.leases import SessionLeases
from agent.replay.providers import CPU, Device, Provider, load_libraries, resolve, session_options, with_options

_DATATYPES = {runtime: name for name, runtime in RUNTIME.items()}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the served model; the datatype in Open Inference Protocol terms, -1 for free extents."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Replayer:
    """An onnxruntime session on an instrumented model."""

    def __init__(
        self,
        instrumented: Instrumented,
        *,
        threads: int,
        gpu_mem_limit: int,
        provider: Provider = "auto",
        engine_cache: Path | None = None,
        memory: SessionMemory | None = None,
        owner: Owner = "replay",
    ) -> None:
        """The arguments are those of `Device`.

        Raises ReplayError where onnxruntime cannot load the model or lacks the provider, DeviceError where the device
        does not work, OutOfMemory where the model does not fit there, NoMemory where the agent may take no more.
        """
        self._pooled = instrumented.pooled
        self.misfits: dict[str, str] = {}
        """Probes that the last batch had no values of for a fault of theirs, and why."""
        self._batch_axes = instrumented.batch_axes
        self._original = frozenset(instrumented.outputs)
        names = dict.fromkeys(name for one in instrumented.pooled.values() for name in one.names)
        self._fetched = [name for name in names if name not in instrumented.batch_axes]
        device = Device(threads, gpu_mem_limit, provider, engine_cache, memory, owner)
        self._session = open_session(instrumented, device)
        if not self._fetched:
            self._fetched = list(instrumented.outputs)

    @classmethod
    def on(cls, device: Device, instrumented: Instrumented) -> Replayer:
        """A session on a device; as the constructor."""
        return cls(
            instrumented,
            threads=device.threads,
            gpu_mem_limit=device.gpu_mem_limit,
            provider=device.provider,
            engine_cache=device.engine_cache,
            memory=device.memory,
            owner=device.owner,
        )

    @property
    def provider(self) -> str:
        """The execution provider in use, such as CUDAExecutionProvider."""
        return str(self._session.get_providers()[0])

    @property
    def provider_options(self) -> dict[str, str]:
        """The options that the provider in use works with, as onnxruntime reports them."""
        return dict(self._session.get_provider_options()[self.provider])

    @property
    def inputs(self) -> tuple[Port, ...]:
        return tuple(port_of(value) for value in self._session.get_inputs())

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The original model's outputs."""
        return tuple(port_of(value) for value in self._session.get_outputs() if value.name in self._original)

    @property
    def batch_size(self) -> int | None:
        """The only batch size the model takes; None where it is free."""
        axes = {port.name: self._batch_axes.get(port.name, 0) for port in self.inputs}
        extents = [port.shape[axis] for port in self.inputs if (axis := axes[port.name]) is not None and port.shape]
        return next((extent for extent in extents if extent > 0), None)

    def run(self, inputs: Tensors, *, shrink: bool = False) -> dict[str, Pooled]:
        """Pooled values by probe name for one batch.

        A probe whose first axis turns out not to be the requests is left out, and is in `misfits`. ``shrink`` gives the
        GPU memory that the batch took back to the device. Raises ReplayError where onnxruntime refuses the batch,
        DeviceError where the device fails, OutOfMemory where the batch is too large for it.
        """
        requests = batching.count(inputs, self._batch_axes)
        try:
            fetched = self._unbound(inputs) if self.provider == CPU else self._bound(inputs, shrink)
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise replay_error("cannot run the batch", error) from error
        values = inputs | dict(zip(self._fetched, fetched, strict=True))
        read = {name: outputs.read(values, requests) for name, outputs in self._pooled.items()}
        reasons = {name: self._pooled[name].misfit(values, requests) for name, pooled in read.items() if pooled is None}
        self.misfits = {name: reason for name, reason in reasons.items() if reason is not None}
        return {name: pooled for name, pooled in read.items() if pooled is not None}

    def _unbound(self, inputs: Tensors) -> list[NDArray[Any]]:
        fetched: list[NDArray[Any]] = self._session.run(self._fetched, inputs, quiet())
        return fetched

    def _bound(self, inputs: Tensors, shrink: bool) -> list[NDArray[Any]]:
        """Inputs go to the device once, and only what is fetched comes back, at the end of the run."""
        options = quiet()
        if shrink:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:0")
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if value.dtype.kind in "OSU":  # strings live on the CPU only, and cannot be bound
                return self._unbound(inputs)
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self._fetched:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, options)
        fetched: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return fetched


def quiet() -> Any:
    """Options of a run that keeps onnxruntime from printing what it raises: a run has a severity of its own."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    return options


class _HasModel(Protocol):
    @property
    def weight_bytes(self) -> int: ...
    def session_model(self) -> AbstractContextManager[SessionModel]: ...


def open_session(model_of: _HasModel, device: Device) -> Any:
    """An onnxruntime session on a device; raises ReplayError as `Replayer` does.

    It holds a lease of the device's memory for as long as it lives.
    """
    try:
        weight_bytes = model_of.weight_bytes
    except OSError as error:
        raise replay_error("cannot load the model", error) from error
    leases = SessionLeases(device, weight_bytes)
    try:
        session = _open(model_of, leases.device)
    except Exception:
        leases.release()
        raise
    leases.keep(session, on_gpu=session.get_providers()[0] != CPU)
    return session


def _open(model_of: _HasModel, device: Device) -> Any:
    name = resolve(device.provider)
    load_libraries(name)
    if device.engine_cache is not None and name != CPU:
        device.engine_cache.mkdir(parents=True, exist_ok=True)
    options = session_options(device)
    try:
        with model_of.session_model() as model:
            for key, value in model.config.items():
                options.add_session_config_entry(key, value)
            # Without enable_fallback=0 onnxruntime prints to the terminal and turns to the CPU by itself.
            session = ort.InferenceSession(
                model.source, options, providers=with_options(name, device), enable_fallback=0
            )
    except Exception as error:  # as above
        raise replay_error("cannot load the model", error) from error
    # onnxruntime keeps the model's bytes for the fallback that is switched off: as much memory as the weights again.
    session._model_bytes = None
    if device.provider != "auto" and session.get_providers()[0] != name:
        raise DeviceError(
            f"onnxruntime has {name}, but it does not start here (the driver, CUDA, cuDNN or TensorRT is missing or "
            f"of another version); it offers {', '.join(session.get_providers())}"
        )
    return session


def port_of(value: Any) -> Port:
    """What a session says of an input or output."""
    shape = tuple(extent if isinstance(extent, int) and extent > 0 else -1 for extent in value.shape)
    return Port(value.name, _DATATYPES.get(value.type, value.type), shape)
