"""onnxruntime's messages, as its source and its issue tracker have them, told apart."""

from __future__ import annotations

import pytest

from agent.replay.errors import DeviceError, OutOfMemory, ReplayError, replay_error, run_error


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
    assert type(run_error(RuntimeError(text))) is OutOfMemory


def test_python_has_a_name_for_it_too() -> None:
    assert type(run_error(MemoryError())) is OutOfMemory


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
    assert type(run_error(RuntimeError(text))) is DeviceError


RUNNING = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running {} node. Name:'n1' "


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: image for the following "
            "indices\n index: 1 Got: 4 Expected: 3\n Please fix either the inputs/outputs or the model.",
            "INVALID_ARGUMENT; Got invalid dimensions for input: image for the following indices index: 1 Got: 4 "
            "Expected: 3",
        ),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Unexpected input data type. Actual: (tensor(double)) , "
            "expected: (tensor(float))",
            "INVALID_ARGUMENT; Unexpected input data type. Actual: (tensor(double)) , expected: (tensor(float))",
        ),
        (
            RUNNING.format("Gather") + "Status Message: indices element out of data bounds, idx=987654321 must be "
            "within the inclusive range [-4,3]",
            "INVALID_ARGUMENT in Gather node 'n1'",
        ),
        (
            RUNNING.format("GatherND") + "Status Message: invalid index found, index = 987654321",
            "INVALID_ARGUMENT in GatherND node 'n1'",
        ),
        (
            RUNNING.format("Reshape") + "Status Message: /onnxruntime_src/reshape_helper.h:91 The input tensor cannot "
            "be reshaped to the requested shape. Input shape:{2,3}, requested shape:{987654321}\n",
            "INVALID_ARGUMENT in Reshape node 'n1'",
        ),
        (
            RUNNING.format("Tile") + "Status Message: Tile repeat value must be non-negative, got: -987654321",
            "INVALID_ARGUMENT in Tile node 'n1'",
        ),
        (
            RUNNING.format("Add") + "Status Message: Attempting to broadcast an axis by a dimension other than 1. 3 by "
            "5\n",
            "INVALID_ARGUMENT in Add node 'n1'; Attempting to broadcast an axis by a dimension other than 1",
        ),
        ("secret-0815 and 987654321", "RuntimeError"),
    ],
)
def test_a_fault_of_the_request_is_told_without_its_values(text: str, told: str) -> None:
    error = run_error(RuntimeError(text))
    assert type(error) is ReplayError
    assert str(error) == f"onnxruntime cannot run the batch: {told}"


def test_a_lack_of_memory_is_told_with_its_size() -> None:
    text = RUNNING.format("Conv") + "Status Message: Failed to allocate memory for requested buffer of size 939524096"
    assert "in Conv node 'n1'; Failed to allocate memory for requested buffer of size up to 1024 MiB" in str(
        run_error(RuntimeError(text))
    )


def test_what_is_wrong_with_a_model_is_told_in_full() -> None:
    text = "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Foo(1) node with name 'x'"
    assert text in str(replay_error("cannot load the model", RuntimeError(text)))


@pytest.mark.parametrize("amount", [700, 1_500_000, 4_938_271_560_704])
def test_an_amount_of_memory_does_not_give_away_the_number_it_follows_from(amount: int) -> None:
    """As where a model makes as many elements as the request says."""
    told = {
        str(run_error(RuntimeError(f"Failed to allocate memory for requested buffer of size {number}")))
        for number in (amount, amount + amount // 1000)
    }
    assert len(told) == 1
    assert str(amount) not in told.pop()


def test_a_number_of_a_request_that_becomes_a_shape_is_not_told() -> None:
    text = "Status Message: Attempting to broadcast an axis by a dimension other than 1. 3 by 12345"
    assert "12345" not in str(run_error(RuntimeError(RUNNING.format("Add") + text)))
