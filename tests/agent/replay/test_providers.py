"""Which provider is asked for, with which options, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.instrument import instrument
from agent.replay import Device, DeviceError, Replayer, ReplayError, resolve
from agent.replay import session as session_module
from agent.replay.providers import CPU, CUDA, TENSORRT, Provider, with_options
from tests.agent.models import small_cnn

ALL = [TENSORRT, CUDA, CPU]


@pytest.mark.parametrize(
    ("provider", "available", "name"),
    [
        ("auto", ALL, CUDA),
        ("auto", [CPU], CPU),
        ("cpu", ALL, CPU),
        ("cuda", ALL, CUDA),
        ("tensorrt", ALL, TENSORRT),
    ],
)
def test_the_provider_that_is_asked_of_onnxruntime(provider: Provider, available: list[str], name: str) -> None:
    assert resolve(provider, available) == name


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_an_error_that_says_what_to_do(provider: Provider) -> None:
    with pytest.raises(ReplayError, match=rf"{provider} was asked for.*only AzureEx.*{CPU}; .*reluscope\[agent-gpu\]"):
        resolve(provider, ["AzureExecutionProvider", CPU])


def test_a_provider_that_nobody_knows() -> None:
    with pytest.raises(ReplayError, match="no such provider: 'npu'; there are auto, cpu, cuda, tensorrt"):
        resolve("npu", ALL)  # type: ignore[arg-type]


def test_cuda_is_bounded_starts_cheaply_and_leaves_the_rest_to_the_cpu() -> None:
    (name, options), (last, _) = with_options(CUDA, Device(1, 123))
    assert (name, last) == (CUDA, CPU)
    assert options == {
        "gpu_mem_limit": "123",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": "1",
    }


def test_tensorrt_has_the_same_limit_and_keeps_its_engines() -> None:
    order = with_options(TENSORRT, Device(1, 123, "tensorrt", Path("/state/tensorrt")))
    assert [name for name, _ in order] == [TENSORRT, CUDA, CPU]
    assert order[0][1] == {
        "trt_max_workspace_size": "123",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "/state/tensorrt",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": "/state/tensorrt",
    }


def test_several_sessions_keep_the_limit_together() -> None:
    assert Device(1, 100).sharing(4).gpu_mem_limit == 25
    assert Device(1, 100).sharing(0).gpu_mem_limit == 100


def test_a_provider_that_onnxruntime_has_but_that_does_not_start_is_the_devices_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the driver is missing: onnxruntime then leaves the provider out without an error."""
    monkeypatch.setattr(session_module, "resolve", lambda provider: CUDA)
    monkeypatch.setattr(session_module, "load_libraries", lambda name: None)
    monkeypatch.setattr(session_module, "with_options", lambda name, device: [(CPU, {})])
    with pytest.raises(DeviceError, match=r"does not start here.*it offers CPUExecutionProvider"):
        Replayer(instrument(small_cnn()), threads=1, gpu_mem_limit=1, provider="cuda")
