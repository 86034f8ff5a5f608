"""Runs batches of sampled requests through the instrumented model. The only module that knows onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, RuntimeException

from agent import batching
from agent.instrument import Instrumented
from agent.instrument.whole import Exposed
from agent.pooled import Pooled

_DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(float16)": "FP16",
    "tensor(double)": "FP64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
    "tensor(bfloat16)": "BF16",
} | {f"tensor({sign}int{bits})": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class ReplayError(RuntimeError):
    """A model that onnxruntime cannot load, or a batch that it cannot run."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the served model; the datatype in Open Inference Protocol terms, -1 for free extents."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Replayer:
    """An onnxruntime session on an instrumented model."""

    def __init__(self, instrumented: Instrumented, *, threads: int, gpu_mem_limit: int) -> None:
        """``threads`` caps the CPU threads of one run, ``gpu_mem_limit`` the bytes of CUDA memory."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would burn the pod's CPU between batches.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        providers: list[Any] = ["CPUExecutionProvider"]
        if "CUDAExecutionProvider" in ort.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"gpu_mem_limit": str(gpu_mem_limit)}))
        try:
            with instrumented.session_model() as model:
                for key, value in model.config.items():
                    options.add_session_config_entry(key, value)
                self._session = ort.InferenceSession(model.source, options, providers=providers)
        except (Fail, InvalidGraph, InvalidProtobuf, RuntimeException, RuntimeError, ValueError) as error:
            raise ReplayError(f"onnxruntime cannot load the model: {error}") from error
        self._instrumented = instrumented
        self._fetched = list(dict.fromkeys(name for one in instrumented.pooled.values() for name in one.names))

    @property
    def provider(self) -> str:
        """The execution provider in use, such as CUDAExecutionProvider."""
        return str(self._session.get_providers()[0])

    @property
    def inputs(self) -> tuple[Port, ...]:
        return tuple(_port(value) for value in self._session.get_inputs())

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The original model's outputs."""
        kept = set(self._instrumented.outputs)
        return tuple(_port(value) for value in self._session.get_outputs() if value.name in kept)

    @property
    def batch_size(self) -> int | None:
        """The only batch size the model takes; None where it is free."""
        fixed = [port.shape[0] for port in self.inputs if port.shape and port.shape[0] > 0]
        return fixed[0] if fixed else None

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, Pooled]:
        """Pooled values by probe name for one batch; raises ReplayError where onnxruntime refuses the batch.

        A probe whose first axis turns out not to be the requests is left out.
        """
        requests = batching.count(inputs, self._instrumented.batch_axes)
        try:
            values = dict(zip(self._fetched, self._session.run(self._fetched, inputs), strict=True))
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise ReplayError(f"onnxruntime cannot run the batch: {error}") from error
        read = {name: outputs.read(values, requests) for name, outputs in self._instrumented.pooled.items()}
        return {name: pooled for name, pooled in read.items() if pooled is not None}


def output_types(model: bytes) -> dict[str, tuple[str, list[int | str | None]]]:
    """Type and shape of a model's outputs as onnxruntime infers them; empty where it cannot load the model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's errors share no base class below Exception
        return {}
    return {value.name: (value.type, list(value.shape)) for value in session.get_outputs()}


class FullSession:
    """An onnxruntime session that fetches chosen tensors of a model whole: for comparing two models, in the agent."""

    def __init__(self, exposed: Exposed, *, threads: int, gpu_mem_limit: int, cpu_only: bool = False) -> None:
        """``cpu_only`` leaves the GPU aside; the rest is as for `Replayer`. Raises ReplayError."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        providers: list[Any] = ["CPUExecutionProvider"]
        if not cpu_only and "CUDAExecutionProvider" in ort.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"gpu_mem_limit": str(gpu_mem_limit)}))
        try:
            with exposed.session_model() as model:
                for key, value in model.config.items():
                    options.add_session_config_entry(key, value)
                self._session = ort.InferenceSession(model.source, options, providers=providers)
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise ReplayError(f"onnxruntime cannot load the model: {error}") from error
        self._outputs = exposed.outputs
        self._fetched = list(dict.fromkeys(exposed.outputs.values()))

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What the session wants, in order."""
        return tuple(_port(value) for value in self._session.get_inputs())

    @property
    def provider(self) -> str:
        """The execution provider that the session got, which may be the CPU where another was wanted."""
        return str(self._session.get_providers()[0])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every exposed tensor as far as onnxruntime infers it, -1 for free extents."""
        ports = {port.name: port.shape for port in map(_port, self._session.get_outputs())}
        return {tensor: ports[output] for tensor, output in self._outputs.items()}

    def run(self, inputs: batching.Tensors) -> batching.Tensors:
        """The values of every exposed tensor, by its name in the original model; raises ReplayError."""
        try:
            values = dict(zip(self._fetched, self._session.run(self._fetched, inputs), strict=True))
        except Exception as error:  # as above
            raise ReplayError(f"onnxruntime cannot run the batch: {error}") from error
        return {tensor: values[output] for tensor, output in self._outputs.items()}


def stack(requests: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Concatenates requests of equal trailing shapes along the batch axis."""
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def _port(value: Any) -> Port:
    shape = tuple(extent if isinstance(extent, int) and extent > 0 else -1 for extent in value.shape)
    return Port(value.name, _DATATYPES.get(value.type, value.type), shape)
