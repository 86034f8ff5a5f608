"""What can go wrong in replay, told apart by onnxruntime's messages.

onnxruntime raises one exception class per status code, with no base class below Exception, and has no code for a lack
of memory: out of GPU memory comes as FAIL or RUNTIME_EXCEPTION, the same as a request of the wrong shape. What tells
them apart is the text: of the BFC arena where `gpu_mem_limit` is reached, of the CUDA runtime, cuDNN, cuBLAS or
TensorRT where the device itself has no room.

The text of a failed run may quote the request ("indices element out of data bounds, idx=12345"), and goes to the log.
So only those parts of it are kept that cannot: the status, the operator, the node's name, the shapes and types of
inputs, amounts of memory to a power of two, and the device's own codes. The shapes of other tensors are left out: where
a model makes a shape of a number (Range, OneHot, ConstantOfShape), it is the request's; and so is what it takes of
memory.
"""

from __future__ import annotations

import re

_NO_MEMORY = re.compile(
    r"failed to allocate memory|out[ _]?of[ _]?memory|memory[ _]?allocation|available memory of \d+ is smaller"
    r"|bad[ _]alloc|ALLOC_FAILED|cudaErrorMemoryAllocation|CUDA failure 2:",
    re.IGNORECASE,
)
_DEVICE = re.compile(r"CUDA (?:failure|error|driver)|CUDNN|CUBLAS|CUFFT|CURAND|cudaError|TensorRT|NVRTC", re.IGNORECASE)

_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (\w+)")
_NODE = re.compile(r"while running (\w+) node\. Name:'([^']{0,200})'")
_BYTES = re.compile(r"(?:size|memory of|bytes of) (\d+)", re.IGNORECASE)
_SAFE = re.compile(
    r"Got invalid dimensions for input: \S{1,200} for the following indices(?:\s+index: \d+ Got: \d+ Expected: \d+)*"
    r"|Invalid rank for input: \S{1,200} Got: \d+ Expected: \d+"
    r"|Unexpected input data type\. Actual: \([\w()]+\) , expected: \([\w()]+\)"
    r"|Required inputs \(\[[^\]]{0,200}\]\) are missing"
    r"|Attempting to broadcast an axis by a dimension other than 1"
    r"|dimension mismatch"
    r"|Input channels C is not equal to kernel channels \* group"
    r"|Failed to allocate memory(?: for requested buffer of size \d+)?"
    r"|Available memory of \d+ is smaller than requested bytes of \d+"
    r"|out[ _]?of[ _]?memory|bad[ _]alloc\w*"
    r"|(?:CUDA|CUDNN|CUBLAS|CUFFT|CURAND) (?:failure|error) \d+(?:: [a-z -]{1,80})?"
    r"|(?:CUDA|CUDNN|CUBLAS)_[A-Z_]+|cudaError\w+|TensorRT EP [a-z -]{1,80}",
    re.IGNORECASE,
)
"""Parts of messages that say nothing of a tensor's content; intake has checked the names of inputs."""


class ReplayError(RuntimeError):
    """A model that onnxruntime cannot load, or a batch that it cannot run."""


class DeviceError(ReplayError):
    """The device failed, not the model or the batch: elsewhere, or later, the same batch may run."""


class OutOfMemory(DeviceError):
    """The device has no room for the model or the batch: a smaller batch may run."""


class NoMemory(OutOfMemory):
    """The agent's own budget of memory refuses the session: a smaller batch changes nothing, time may."""


def replay_error(what: str, error: Exception) -> ReplayError:
    """The ReplayError, DeviceError or OutOfMemory that an exception from onnxruntime means; not for runs of requests.

    >>> type(replay_error("cannot load the model", RuntimeError("CUDA failure 2: out of memory"))).__name__
    'OutOfMemory'
    """
    text = str(error) or type(error).__name__
    return _kind(error, text)(f"onnxruntime {what}: {text}")


def run_error(error: Exception) -> ReplayError:
    """The same where a batch cannot be run. It tells nothing of the requests, so raise it ``from None``.

    >>> type(run_error(RuntimeError("CUDA failure 2: out of memory"))).__name__
    'OutOfMemory'
    """
    text = str(error)
    return _kind(error, text)(f"onnxruntime cannot run the batch: {without_values(error, text)}")


def without_values(error: Exception, text: str) -> str:
    """What may be told of an exception of this text from a run.

    >>> text = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running Gather node. "
    >>> without_values(ValueError(), text + "Name:'emb' Status Message: out of data bounds, idx=12345")
    "INVALID_ARGUMENT in Gather node 'emb'"
    """
    status, node = _STATUS.match(text), _NODE.search(text)
    parts = [status[1] if status else type(error).__name__]
    if node:
        parts.append(f"in {node[1]} node '{node[2]}'")
    found = (" ".join(one[0].split()) for one in _SAFE.finditer(text))
    details = list(dict.fromkeys(_BYTES.sub(_about, one) for one in found))
    return " ".join(parts) + "".join(f"; {detail}" for detail in details)


def _about(found: re.Match[str]) -> str:
    """An amount of bytes to the next power of two: enough to choose a limit by."""
    most = 1 << max(0, int(found[1]) - 1).bit_length()
    told = f"{most >> 20} MiB" if most >> 20 else f"{most} bytes"
    return found[0].removesuffix(found[1]) + f"up to {told}"


def _kind(error: Exception, text: str) -> type[ReplayError]:
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return OutOfMemory
    return DeviceError if _DEVICE.search(text) else ReplayError
