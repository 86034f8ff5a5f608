"""onnxruntime's messages, as its source and its issue tracker have them, told apart."""

from __future__ import annotations

import pytest

from agent.replay.errors import DeviceError, OutOfMemory, ReplayError, replay_error


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'c' "
        "Status Message: bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) "
        "Failed to allocate memory for requested buffer of size 939524096",
        "[ONNXRuntimeError] : 1 : FAIL : Available memory of 1024 is smaller than requested bytes of 2048",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=pod ; expr=cudaMalloc((void**)&p, size);",
        "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "TensorRT EP could not build engine: [E] Error Code 2: OutOfMemory (no further information)",
        "std::bad_alloc",
        "bad allocation",
    ],
)
def test_a_lack_of_memory(text: str) -> None:
    assert type(replay_error("cannot run the batch", RuntimeError(text))) is OutOfMemory


def test_python_has_a_name_for_it_too() -> None:
    assert type(replay_error("cannot run the batch", MemoryError())) is OutOfMemory


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=pod",
        "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0",
        "CUDA failure 100: no CUDA-capable device is detected",
        "TensorRT EP failed to create engine from network.",
    ],
)
def test_a_failing_device(text: str) -> None:
    assert type(replay_error("cannot run the batch", RuntimeError(text))) is DeviceError


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: image for the following indices",
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Foo(1) node with name 'x'",
        "indices element out of data bounds, idx=9 must be within the inclusive range [-4,3]",
    ],
)
def test_a_fault_of_the_model_or_the_request(text: str) -> None:
    error = replay_error("cannot run the batch", RuntimeError(text))
    assert type(error) is ReplayError
    assert text in str(error)
