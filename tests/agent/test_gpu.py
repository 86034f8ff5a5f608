"""Replay on a CUDA device, and TensorRT where it is. Skipped, with a reason, where onnxruntime has no CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from agent.capture.calibration import calibrate
from agent.capture.engine import Engine
from agent.capture.groups import partition
from agent.capture.pressure import Patience
from agent.capture.settings import CaptureSettings
from agent.instrument import instrument
from agent.replay import Device, Replayer, ReplayError
from tests.agent.capture.fakes import Clock, Notes
from tests.agent.instrument.test_instrument import plain_run
from tests.agent.models import resnet50, sequence_block, small_cnn

pytestmark = pytest.mark.gpu

MIB = 1 << 20


def images(count: int, size: int = 224, channels: int = 3) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(count)
    return {"image": rng.standard_normal((count, channels, size, size), dtype=np.float32)}


@pytest.mark.parametrize(
    ("model", "shape"), [(small_cnn(), (16, 1, 8, 8)), (sequence_block(), (4, 7, 8))], ids=["cnn", "sequences"]
)
def test_auto_takes_cuda_and_bound_values_agree_with_numpy(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    instrumented = instrument(model)
    replayer = Replayer(instrumented, threads=1, gpu_mem_limit=1024 * MIB)
    assert replayer.provider == "CUDAExecutionProvider"
    inputs = {model.graph.input[0].name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    tensors = inputs | plain_run(model, inputs, tuple(probe.tensor for probe in instrumented.probes))
    pooled = replayer.run(inputs)
    assert list(pooled) == [probe.name for probe in instrumented.probes]
    for probe in instrumented.probes:
        value, got = tensors[probe.tensor].astype(np.float64), pooled[probe.name]
        axes = tuple(axis for axis in range(1, value.ndim) if axis != probe.axis)
        # From Ampere on CUDA multiplies in TF32 by default, with ten bits of mantissa, as the server does.
        np.testing.assert_allclose(got.mean, value.mean(axes), rtol=1e-2, atol=2e-3, err_msg=probe.name)
        np.testing.assert_allclose(got.maximum, value.max(axes), rtol=1e-2, atol=1e-2, err_msg=probe.name)
        np.testing.assert_allclose(got.fraction, (value > 0).mean(axes), atol=5e-2, err_msg=probe.name)


def test_bound_and_unbound_runs_agree() -> None:
    replayer = Replayer(instrument(small_cnn()), threads=1, gpu_mem_limit=1024 * MIB)
    inputs = images(16, size=8, channels=1)
    for bound, unbound in zip(replayer._bound(inputs, False), replayer._unbound(inputs), strict=True):
        np.testing.assert_allclose(bound, unbound, rtol=1e-5, atol=1e-6)


def test_each_session_has_a_stream_of_its_own_and_is_bounded() -> None:
    """Without a user's stream the provider makes a non-blocking one; copies go the same way, so that nothing races."""
    options = Replayer(instrument(small_cnn()), threads=1, gpu_mem_limit=64 * MIB).provider_options
    assert options["has_user_compute_stream"] == "0"
    assert options["do_copy_in_default_stream"] == "1"
    assert options["gpu_mem_limit"] == str(64 * MIB)
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"


def test_bytes_off_the_device_are_a_hundredth_of_the_activations() -> None:
    instrumented = instrument(resnet50())
    replayer = Replayer(instrumented, threads=1, gpu_mem_limit=2048 * MIB)
    fetched = sum(value.nbytes for value in replayer._bound(images(8), False))
    activations = 8 * 4 * sum(instrumented.elements[p.name] or 0 for p in instrumented.probes if p.kind == "activation")
    print(f"ResNet-50, batch 8: {fetched / 1e6:.2f} MB off the device of {activations / 1e6:.1f} MB of activations")
    assert fetched <= 0.01 * activations


def test_overhead_is_ten_percent_at_most() -> None:
    observed = instrument(resnet50())
    device = Device(1, 2048 * MIB, "cuda")
    settings = CaptureSettings(device, overhead_budget=0.10, calibration_seconds=30.0)
    found = calibrate(observed, settings, lambda part: Replayer.on(device, part), lambda: False)
    print(f"ResNet-50, batch 8, CUDA: {found.ratio:.3f} times plain, in {len(found.groups)} groups")
    assert found.timed
    assert found.ratio is not None and found.ratio <= 1.10


def engine(limit: int, notes: Notes, clock: Clock, patience: Patience | None = None) -> Engine:
    observed = instrument(resnet50())
    settings = CaptureSettings(Device(1, limit, "cuda"), max_batch=32)
    groups = partition(observed.probes, observed.elements, 1)
    return Engine(observed, groups, settings, notes, patience=patience, clock=clock)


def test_the_memory_limit_is_held_by_smaller_batches_and_nothing_is_lost() -> None:
    """98 MiB of weights and, at batch 32, some hundreds of activations, in 320 MiB."""
    notes = Notes()
    under_test = engine(320 * MIB, notes, Clock())
    pooled = under_test.run(images(32))
    assert len(pooled) == 51
    assert all(len(values.mean) == 32 and np.isfinite(values.mean).all() for values in pooled.values())
    assert notes.out and notes.moves == [], "halved, and still on the GPU"
    assert under_test.provider == "CUDAExecutionProvider"


def test_a_limit_below_the_weights_ends_on_the_cpu_and_says_so() -> None:
    notes, clock = Notes(), Clock()
    under_test = engine(32 * MIB, notes, clock, Patience(grow=1, retry=10, longest=100))
    assert under_test.provider == "CPUExecutionProvider"
    assert notes.out == [0] and notes.moves == [("CPU", True)]
    assert len(under_test.run(images(2))) == 51
    clock.now = 11
    assert len(under_test.run(images(2))) == 51
    assert notes.moves == [("CPU", True)], "tried again, and still no room"


def test_resnet50_runs_within_its_memory_limit() -> None:
    replayer = Replayer(instrument(resnet50()), threads=1, gpu_mem_limit=2048 * MIB)
    pooled = replayer.run(images(8))
    assert len(pooled) == 51
    assert all(np.isfinite(values.mean).all() for values in pooled.values())
    again = replayer.run(images(8), shrink=True)
    np.testing.assert_allclose(again["stem_relu"].mean, pooled["stem_relu"].mean, rtol=1e-4, atol=1e-5)


def test_tensorrt_runs_and_keeps_its_engines(tmp_path: Path) -> None:
    if "TensorrtExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no TensorRT")
    try:
        device = Device(1, 1024 * MIB, "tensorrt", tmp_path)
        replayer = Replayer.on(device, instrument(small_cnn()))
    except ReplayError as error:
        if "does not start here" in str(error):
            pytest.skip("TensorRT's libraries are not installed")
        raise
    inputs = images(4, size=8, channels=1)
    expected = Replayer(instrument(small_cnn()), threads=1, gpu_mem_limit=1, provider="cpu").run(inputs)
    got = replayer.run(inputs)
    np.testing.assert_allclose(got["relu2"].mean, expected["relu2"].mean, rtol=1e-2, atol=1e-3)
    assert list(tmp_path.iterdir()), "an engine was kept"
