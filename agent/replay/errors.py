"""What can go wrong in replay, told apart by onnxruntime's messages.

onnxruntime raises one exception class per status code, with no base class below Exception, and has no code for a lack
of memory: out of GPU memory comes as FAIL or RUNTIME_EXCEPTION, the same as a request of the wrong shape. What tells
them apart is the text: of the BFC arena where `gpu_mem_limit` is reached, of the CUDA runtime, cuDNN, cuBLAS or
TensorRT where the device itself has no room.
"""

from __future__ import annotations

import re

_NO_MEMORY = re.compile(
    r"failed to allocate memory|out[ _]?of[ _]?memory|memory[ _]?allocation|available memory of \d+ is smaller"
    r"|bad[ _]alloc|ALLOC_FAILED|cudaErrorMemoryAllocation|CUDA failure 2:",
    re.IGNORECASE,
)
_DEVICE = re.compile(r"CUDA (?:failure|error|driver)|CUDNN|CUBLAS|CUFFT|CURAND|cudaError|TensorRT|NVRTC", re.IGNORECASE)


class ReplayError(RuntimeError):
    """A model that onnxruntime cannot load, or a batch that it cannot run."""


class DeviceError(ReplayError):
    """The device failed, not the model or the batch: elsewhere, or later, the same batch may run."""


class OutOfMemory(DeviceError):
    """The device has no room for the model or the batch: a smaller batch may run."""


class NoMemory(OutOfMemory):
    """The agent's own budget of memory refuses the session: a smaller batch changes nothing, time may."""


def replay_error(what: str, error: Exception) -> ReplayError:
    """The ReplayError, DeviceError or OutOfMemory that an exception from onnxruntime means.

    >>> type(replay_error("cannot run the batch", RuntimeError("CUDA failure 2: out of memory"))).__name__
    'OutOfMemory'
    """
    text = str(error) or type(error).__name__
    kind: type[ReplayError] = ReplayError
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        kind = OutOfMemory
    elif _DEVICE.search(text):
        kind = DeviceError
    return kind(f"onnxruntime {what}: {text}")
