"""Where replay runs: which execution provider, with which options.

CUDA's options, by onnxruntime's documentation (execution-providers/CUDA-ExecutionProvider):

- ``gpu_mem_limit`` bounds the arena of one session, weights included; the CUDA context, cuDNN and cuBLAS come on top.
- ``arena_extend_strategy=kSameAsRequested`` grows by what is asked for; the default doubles.
- ``cudnn_conv_algo_search=HEURISTIC``: the default, EXHAUSTIVE, times every algorithm for every new shape, which makes
  the first batches slow and takes the most memory.
- No ``user_compute_stream`` is given: the provider then makes a non-blocking stream of its own for each session, so
  that nothing waits on CUDA's default stream, nor makes others wait.
- ``do_copy_in_default_stream`` stays 1. Its name misleads: "default" is the session's compute stream. 0 would copy on a
  second stream and race with the arena's reuse of memory (onnxruntime issue 4829).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import onnxruntime as ort
from pydantic import Field, InstanceOf
from pydantic.dataclasses import dataclass as settings

from agent.budget.owner import Owner, SessionMemory
from agent.options import INTERNAL, MIB, SECTION, Option
from agent.replay.errors import ReplayError

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_NAMES: dict[str, str] = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}


def _spare_threads() -> int:
    """Half the cores, so that the server keeps the rest."""
    return max(1, (os.cpu_count() or 1) // 2)


@settings(frozen=True, slots=True, config=SECTION)
class Device:
    """Where sessions run and what each may take of it.

    TensorRT is used only where it is asked for: its engines take minutes to build.
    """

    threads: Annotated[int, Option(default="half the cores")] = Field(default_factory=_spare_threads, ge=1)
    """CPU threads of replay."""
    gpu_mem_limit: Annotated[int, Option("gpu_mem_limit_mib", unit=MIB)] = Field(default=2048 * MIB, ge=1)
    """Most GPU memory for the sessions of one model version."""
    provider: Provider = "auto"
    """Where to replay; auto: CUDA where there is, else the CPU."""
    engine_cache: Annotated[Path | None, INTERNAL] = None
    """Folder for TensorRT's built engines, so that a restart does not build them again."""
    memory: Annotated[InstanceOf[SessionMemory] | None, INTERNAL] = None
    """What all sessions of the process lease their memory from; None for no limit but each session's own."""
    owner: Annotated[Owner, INTERNAL] = "replay"
    """For whose work sessions are."""

    def owned(self, owner: Owner) -> Device:
        """The same for some kind of work, with no more GPU memory than its fair share is now."""
        limit = self.gpu_mem_limit if self.memory is None else min(self.gpu_mem_limit, self.memory.gpu_share)
        return replace(self, owner=owner, gpu_mem_limit=limit)

    @property
    def has_gpu(self) -> bool:
        """Whether sessions are to run on a GPU; raises ReplayError as `resolve` does."""
        return resolve(self.provider) != CPU

    def on_cpu(self) -> Device:
        """The same, without the GPU."""
        return replace(self, provider="cpu")

    def sharing(self, sessions: int) -> Device:
        """The same, for one of several sessions that keep the memory limit together."""
        return replace(self, gpu_mem_limit=max(1, self.gpu_mem_limit // max(1, sessions)))


def resolve(provider: Provider, available: Sequence[str] | None = None) -> str:
    """The execution provider to ask onnxruntime for.

    ``available`` are the providers that onnxruntime was built with, asked of it where not given. Raises ReplayError,
    with what to install, where the provider is not among them.
    """
    if provider not in get_args(Provider):
        raise ReplayError(f"no such provider: {provider!r}; there are {', '.join(get_args(Provider))}")
    has = list(ort.get_available_providers() if available is None else available)
    if provider == "auto":
        return CUDA if CUDA in has else CPU
    name = _NAMES[provider]
    if name not in has:
        raise ReplayError(
            f"provider {provider} was asked for, but this onnxruntime has only {', '.join(has)}; "
            "pip uninstall onnxruntime, then pip install 'reluscope[agent-gpu]' brings CUDA and TensorRT"
        )
    return name


def with_options(name: str, device: Device) -> list[tuple[str, dict[str, str]]]:
    """Providers with their options, in the order in which onnxruntime tries them."""
    cuda = {
        "gpu_mem_limit": str(device.gpu_mem_limit),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": "1",
    }
    tensorrt = {"trt_max_workspace_size": str(device.gpu_mem_limit)}
    if device.engine_cache is not None:
        tensorrt |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(device.engine_cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(device.engine_cache),
        }
    # What one provider has no kernel for goes to the next.
    order: dict[str, list[tuple[str, dict[str, str]]]] = {
        CPU: [(CPU, {})],
        CUDA: [(CUDA, cuda), (CPU, {})],
        TENSORRT: [(TENSORRT, tensorrt), (CUDA, cuda), (CPU, {})],
    }
    return order[name]


def load_libraries(name: str) -> None:
    """Loads CUDA and cuDNN from their wheels, where onnxruntime can and they are there; else the loader's paths serve.

    Before the first session on a GPU.
    """
    preload = getattr(ort, "preload_dlls", None)
    if name != CPU and preload is not None:
        preload()


def session_options(device: Device) -> Any:
    """Options of a session that shares its machine with a server."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = device.threads
    options.inter_op_num_threads = 1
    # Spinning threads would burn the pod's CPU between batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # its errors come as exceptions, and are in the agent's own log
    # A memory pattern takes one block for all activations of a run beside the one that found the pattern out.
    options.enable_mem_pattern = False
    # One arena for all sessions, so that the groups of a model that take turns use the same memory.
    _share_arena(0 if device.memory is None else device.memory.activations)
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Weights stay out of it: the arena never gives memory back, and would grow with every version that is loaded.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


_shared: list[int] = []
"""The limit of the process's arena, once there is one: it cannot be changed."""
_sharing = threading.Lock()


def _share_arena(limit: int) -> None:
    """The first call decides on the limit, in bytes; 0 for none."""
    with _sharing:
        if _shared:
            return
        memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        # -1 leaves onnxruntime its defaults.
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg(limit, -1, -1, -1) if limit else None)
        _shared.append(limit)
