"""Requests survive a lack of memory: smaller batches, then the CPU, then the GPU again; with real sessions."""

from __future__ import annotations

import numpy as np
import pytest

from agent.capture.engine import Engine
from agent.capture.groups import partition
from agent.capture.pressure import Patience
from agent.capture.settings import CaptureSettings
from agent.instrument import Instrumented, instrument
from agent.instrument.pooled import Pooled
from agent.replay import Device, OutOfMemory, Replayer, ReplayError
from tests.agent.capture.fakes import Clock, Gpu, GpuDevice, Notes, images
from tests.agent.models import Builder, resnet50, small_cnn

DEVICE = GpuDevice(1, 1 << 30)
ENDS = {"image", "fc2_out"}


def engine(gpu: Gpu, notes: Notes, clock: Clock, groups: int = 1, memory: int = 1 << 30) -> Engine:
    observed = instrument(small_cnn())
    return Engine(
        observed,
        partition(observed.probes, observed.elements, groups),
        CaptureSettings(DEVICE, max_batch=16, session_memory=memory),
        notes,
        build=gpu.build,
        patience=Patience(grow=10, retry=60, longest=240),
        clock=clock,
    )


def assert_same(got: dict[str, Pooled], rows: int) -> None:
    expected = Replayer(instrument(small_cnn()), threads=1, gpu_mem_limit=1).run(images(rows))
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name].mean, values.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[name].maximum, values.maximum, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[name].fraction, values.fraction, rtol=1e-5, atol=1e-6)


def test_a_batch_that_does_not_fit_is_run_in_halves_and_nothing_is_lost() -> None:
    gpu, notes = Gpu(room=5), Notes()
    under_test = engine(gpu, notes, Clock())
    assert_same(under_test.run(images(13)), 13)
    assert gpu.batches == [("gpu", 13), ("gpu", 6), ("gpu", 3), ("gpu", 3), ("gpu", 3), ("gpu", 3), ("gpu", 1)]
    assert (notes.out, notes.moves) == ([13, 6], [])
    assert gpu.shrunk == [False, *[True] * 6], "memory goes back while it is scarce"


def test_what_the_gpu_has_no_room_for_at_all_runs_on_the_cpu() -> None:
    gpu, notes, clock = Gpu(room=2), Notes(), Clock()
    under_test = engine(gpu, notes, clock)
    gpu.room = -1
    assert_same(under_test.run(images(4)), 4)
    assert gpu.batches == [("gpu", 4), ("gpu", 2), ("gpu", 1), ("cpu", 4)]
    assert (notes.out, notes.moves, under_test.provider) == ([4, 2, 1], [("CPU", True)], "CPUExecutionProvider")


def test_the_gpu_is_tried_again_and_the_batch_grows_back() -> None:
    gpu, notes, clock = Gpu(room=16), Notes(), Clock()
    under_test = engine(gpu, notes, clock)
    gpu.room = 0
    under_test.run(images(1))
    clock.now = 59
    under_test.run(images(8))
    clock.now = 60
    under_test.run(images(8))  # not yet: there is no room for the model
    gpu.room = 16
    clock.now = 179
    under_test.run(images(8))
    assert {where for where, _ in gpu.batches[1:]} == {"cpu"}
    clock.now = 180  # twice as long after the second failure
    assert_same(under_test.run(images(8)), 8)
    assert gpu.batches[-8:] == [("gpu", 1)] * 8
    assert notes.moves == [("CPU", True), ("CUDA", False)]
    for clock.now in (190, 200, 210, 220, 230):
        under_test.run(images(16))
    assert gpu.batches[-1] == ("gpu", 16)


def test_a_gpu_without_room_for_the_model_starts_on_the_cpu() -> None:
    gpu, notes = Gpu(room=0), Notes()
    under_test = engine(gpu, notes, Clock())
    assert_same(under_test.run(images(3)), 3)
    assert (gpu.batches, notes.out, notes.moves) == ([("cpu", 3)], [0], [("CPU", True)])


def test_a_broken_gpu_is_left_at_once_and_is_no_lack_of_memory() -> None:
    gpu, notes = Gpu(room=16), Notes()
    under_test = engine(gpu, notes, Clock())
    gpu.broken = True
    assert_same(under_test.run(images(4)), 4)
    assert (gpu.batches, notes.out, notes.moves) == ([("gpu", 4), ("cpu", 4)], [], [("CPU", True)])


def test_a_bad_batch_is_the_requests_fault_and_moves_nothing() -> None:
    gpu, notes = Gpu(room=16), Notes()
    under_test = engine(gpu, notes, Clock())
    with pytest.raises(ReplayError, match="cannot run the batch"):
        under_test.run({"image": np.ones((2, 1, 9), np.float32)})
    assert (notes.out, notes.moves, under_test.provider) == ([], [], "CUDAExecutionProvider")


def test_where_even_the_cpu_has_no_room_the_request_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    observed = instrument(small_cnn())
    under_test = Engine(
        observed,
        partition(observed.probes, {}, 1),
        CaptureSettings(Device(1, 1)),
        notes,
        build=Replayer.on,
        clock=Clock(),
    )

    def full(*_: object, **__: object) -> None:
        raise OutOfMemory("std::bad_alloc")

    monkeypatch.setattr(Replayer, "run", full)
    with pytest.raises(OutOfMemory):
        under_test.run(images(4))
    assert notes.out == [4, 2]


def test_where_the_cpu_cannot_take_over_the_requests_fail_and_the_next_are_tried_again() -> None:
    gpu = Gpu(room=16)

    def build(device: Device, part: Instrumented) -> Replayer:
        if device.provider == "cpu":
            raise OutOfMemory("std::bad_alloc")
        return gpu.build(device, part)

    observed = instrument(small_cnn())
    groups = partition(observed.probes, observed.elements, 1)
    under_test = Engine(observed, groups, CaptureSettings(DEVICE), Notes(), build=build, clock=Clock())
    gpu.broken = True
    with pytest.raises(OutOfMemory):
        under_test.run(images(2))
    gpu.broken = False
    assert_same(under_test.run(images(2)), 2)


def test_groups_take_turns_and_each_request_is_seen_by_inputs_and_outputs() -> None:
    under_test = engine(Gpu(16), Notes(), Clock(), groups=3)
    seen = [set(under_test.run(images(2))) for _ in range(4)]
    assert seen == [ENDS | {"relu2"}, ENDS | {"relu1"}, ENDS | {"relu3"}, ENDS | {"relu2"}]


def test_a_turn_is_not_lost_when_the_device_changes() -> None:
    gpu, clock = Gpu(16), Clock()
    under_test = engine(gpu, Notes(), clock, groups=3)
    under_test.run(images(1))
    gpu.room = -1
    assert set(under_test.run(images(2))) == ENDS | {"relu1"}, "halved and moved, the batch is still one group's"
    assert set(under_test.run(images(2))) == ENDS | {"relu3"}


def test_where_one_session_fits_the_others_are_built_in_turn() -> None:
    clock = Clock()
    under_test = engine(Gpu(16), Notes(), clock, groups=2, memory=0)
    seen = []
    for clock.now in range(4):
        seen.append(set(under_test.run(images(2))) - ENDS)
    # Building took no time on a clock that stood still, so every turn is one batch long.
    assert seen == [{"relu2"}, {"relu1", "relu3"}, {"relu2"}, {"relu1", "relu3"}]


def test_a_fixed_batch_moves_without_halving() -> None:
    b = Builder()
    model = b.model({"image": [4, 1, 8, 8]}, {b.node("Relu", [b.conv("image", "conv1", 1, 4)], "relu1"): 4})
    observed, gpu, notes = instrument(model), Gpu(3), Notes()
    groups = partition(observed.probes, observed.elements, 1)
    under_test = Engine(observed, groups, CaptureSettings(DEVICE), notes, build=gpu.build, clock=Clock())
    assert under_test.batch_size == 4
    assert len(under_test.run(images(4))["relu1"].mean) == 4
    assert gpu.batches == [("gpu", 4), ("cpu", 4)]


@pytest.mark.parametrize(("limit_in_weights", "each"), [(7, 7), (8, 2)])
def test_sessions_that_live_together_on_a_gpu_share_its_limit(limit_in_weights: int, each: int) -> None:
    """Four groups: with room for twice their weights all live, else one, which then has the limit for itself."""
    observed = instrument(resnet50(size=32))
    weights, limits, gpu = observed.weight_bytes, [], Gpu(16)

    def build(device: Device, part: Instrumented) -> Replayer:
        limits.append(device.gpu_mem_limit // weights)
        return gpu.build(device, part)

    groups = partition(observed.probes, observed.elements, 4)
    settings = CaptureSettings(GpuDevice(1, limit_in_weights * weights))
    Engine(observed, groups, settings, Notes(), build=build, clock=Clock())
    assert limits == [each]
