"""On a CUDA device the pooled values equal numpy's too. Skipped, with a reason, where onnxruntime has no CUDA."""

from __future__ import annotations

import numpy as np
import pytest

from agent.instrument import instrument
from agent.replay import Replayer
from tests.agent.models import resnet50, small_cnn
from tests.agent.test_instrument import assert_agrees_with_numpy


@pytest.mark.gpu
def test_cuda_is_used_and_agrees_with_numpy_on_cpu() -> None:
    model = small_cnn()
    instrumented = instrument(model)
    assert Replayer(instrumented, threads=1, gpu_mem_limit=1 << 30).provider == "CUDAExecutionProvider"
    inputs = {"image": np.random.default_rng(0).normal(size=(16, 1, 8, 8)).astype(np.float32)}
    assert_agrees_with_numpy(model, instrumented, inputs, rtol=1e-3)


@pytest.mark.gpu
def test_resnet50_runs_on_cuda_within_its_memory_limit() -> None:
    replayer = Replayer(instrument(resnet50()), threads=1, gpu_mem_limit=2 << 30)
    pooled = replayer.run({"image": np.random.default_rng(0).random((8, 3, 224, 224), np.float32)})
    assert len(pooled) == 51
    assert all(np.isfinite(values.mean).all() for values in pooled.values())
