"""The repository is followed: new versions are swapped in and announced, broken ones refused with a reason."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from structlog.testing import capture_logs

from agent.capture.engine import Engine, EngineClosed
from agent.capture.settings import CaptureSettings
from agent.instrument import Instrumented, instrument
from agent.instrument.files import ModelFile
from agent.instrument.pooled import PooledOutputs
from agent.metrics import AgentMetrics
from agent.replay import Device, Replayer
from agent.serving import loading
from agent.serving.models import Models, be_nice
from agent.serving.repository import RepositoryError, scan
from tests.agent.capture.fakes import Gpu, GpuDevice, images
from tests.agent.models import Builder, small_cnn

VERSION_1 = {"model": "digits", "version": "1"}


class Announced(list[tuple[str, str]]):
    def __call__(self, model: str, version: str, digest: str, instrumented: object, provider: str) -> None:
        self.append((version, provider))


def put(root: Path, version: str, model: onnx.ModelProto | bytes, name: str = "digits") -> Path:
    path = root / name / version / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def models(root: Path, announced: Announced, metrics: AgentMetrics | None = None, **settings: Any) -> Models:
    capture = CaptureSettings(Device(1, 1 << 30), **{"overhead_budget": None, **settings})
    return Models(root, metrics or AgentMetrics(), announced, capture)


def look(served: Models) -> None:
    """Twice, for what has changed may be half copied at the first look."""
    served.refresh()
    served.refresh()


def test_the_highest_version_is_served_and_announced_once(tmp_path: Path) -> None:
    announced = Announced()
    served = models(tmp_path, announced)
    put(tmp_path, "9", small_cnn())
    put(tmp_path, "10", small_cnn())
    (tmp_path / "digits" / "11").mkdir()  # still being copied
    look(served)
    look(served)
    assert announced == [("10", "CPUExecutionProvider")]
    metadata = served.version("digits", None)
    assert metadata is not None
    assert metadata.version == "10"
    assert metadata.inputs[0].shape == (-1, 1, 8, 8)
    assert served.version("digits", "9") is None
    put(tmp_path, "11", small_cnn())
    look(served)
    assert [version for version, _ in announced] == ["10", "11"]


def test_the_same_content_written_again_is_no_deployment(tmp_path: Path) -> None:
    announced = Announced()
    served = models(tmp_path, announced)
    path = put(tmp_path, "1", small_cnn())
    look(served)
    path.touch()
    look(served)
    assert len(announced) == 1
    put(tmp_path, "1", small_cnn(opset=18))
    look(served)
    assert len(announced) == 2


def test_new_external_data_is_a_new_deployment(tmp_path: Path) -> None:
    announced = Announced()
    served = models(tmp_path, announced)
    for seed in (0, 0, 1):
        b = Builder(seed)
        folder = tmp_path / "digits" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").unlink(missing_ok=True)
        made = b.model({"x": ["N", 64]}, {b.node("Relu", [b.gemm("x", "fc", 64, 64)], "relu"): 2})
        onnx.save(made, folder / "model.onnx", save_as_external_data=True, size_threshold=64, location="weights")
        look(served)
    assert len(announced) == 2, "the model file is the same in all three, its weights in two"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no model", "not an ONNX model"), (None, "no rectifier that can be probed")],
)
def test_a_broken_version_leaves_the_former_one_serving(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is None:
        b = Builder()
        content = b.model({"x": ["N", 4]}, {b.node("Tanh", ["x"], "squash"): 2}).SerializeToString()
    metrics = AgentMetrics()
    served = models(tmp_path, Announced(), metrics)
    put(tmp_path, "1", small_cnn())
    look(served)
    put(tmp_path, "2", content)
    with capture_logs() as logs:
        look(served)
        look(served)
    refused = [entry for entry in logs if entry["event"] == "model.refused"]
    assert len(refused) == 1 and reason in refused[0]["reason"], "one log line for one broken file"
    metadata = served.version("digits", None)
    assert metadata is not None
    assert metadata.version == "1"
    assert b'rejected_total{model="digits",reason="model_unusable"} 1.0' in metrics.render()


def test_a_model_that_is_being_copied_is_waited_for(tmp_path: Path) -> None:
    served = models(tmp_path, Announced())
    whole = small_cnn().SerializeToString()
    put(tmp_path, "1", whole[:100])
    with capture_logs() as logs:
        served.refresh()  # even at the first look
        for size in (200, 300, len(whole)):
            put(tmp_path, "1", whole[:size])
            served.refresh()
        assert logs == []
        served.refresh()
    assert [entry["event"] for entry in logs] == ["model.loaded"]


def test_a_file_beside_the_model_does_not_load_it_again(tmp_path: Path) -> None:
    served = models(tmp_path, Announced())
    path = put(tmp_path, "1", small_cnn())
    served.refresh()
    before = served.served("digits")
    path.with_name("holdout.npz").write_bytes(b"new")
    look(served)
    assert served.served("digits") is before is not None


@pytest.mark.parametrize("fault", ["folder", "internal"])
def test_one_odd_model_does_not_keep_the_others_from_being_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    metrics = AgentMetrics()
    served = models(tmp_path, Announced(), metrics)
    odd = tmp_path / "a_first" / "1" / "model.onnx"
    if fault == "folder":
        odd.mkdir(parents=True)
    else:
        odd.parent.mkdir(parents=True)
        odd.write_bytes(small_cnn(opset=18).SerializeToString())
        genuine = instrument

        def broken(opened: ModelFile, *arguments: Any) -> Instrumented:
            if opened.path == odd:
                raise KeyError("axis")
            return genuine(opened, *arguments)

        monkeypatch.setattr(loading, "instrument", broken)
    put(tmp_path, "1", small_cnn())
    with capture_logs() as logs:
        look(served)
        look(served)
    assert [metadata.name for metadata in served.models()] == ["digits"]
    refused = [(one["model"], one["version"], one["reason"]) for one in logs if one["event"] == "model.refused"]
    assert refused == ([] if fault == "folder" else [("a_first", "1", "KeyError: 'axis'")])
    if refused:
        assert b'rejected_total{model="a_first",reason="model_unusable"} 1.0' in metrics.render()


def test_files_that_vanish_while_they_are_looked_at_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "1", small_cnn())
    path.with_name("gone").symlink_to(tmp_path / "nowhere")
    (entry,) = scan(tmp_path).values()
    assert [name for name, _, _ in entry.stamp] == ["model.onnx"]
    monkeypatch.setattr(Path, "iterdir", lambda _folder: iter([tmp_path / "vanished"]))
    assert scan(tmp_path) == {}


def test_a_removed_model_is_forgotten(tmp_path: Path) -> None:
    served = models(tmp_path, Announced())
    put(tmp_path, "1", small_cnn())
    look(served)
    shutil.rmtree(tmp_path / "digits")
    look(served)
    assert served.models() == []


def test_the_sessions_of_a_version_that_was_replaced_or_removed_are_gone_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[weakref.ref[Replayer]] = []

    def build(device: Device, part: Instrumented) -> Replayer:
        session = Replayer.on(device, part)
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(loading, "Engine", lambda *arguments: Engine(*arguments, build=build))
    served = models(tmp_path, Announced())
    gc.disable()
    try:
        put(tmp_path, "1", small_cnn())
        look(served)
        former = served.served("digits")
        assert former is not None
        put(tmp_path, "2", small_cnn())
        look(served)
        assert [session() is None for session in sessions] == [True, False]
        with pytest.raises(EngineClosed):
            former.engine.run(images(1))
        shutil.rmtree(tmp_path / "digits")
        look(served)
        assert [session() is None for session in sessions] == [True, True]
    finally:
        gc.enable()


def test_an_engine_that_is_forgotten_is_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    served = models(tmp_path, Announced())
    put(tmp_path, "1", small_cnn())
    gc.disable()
    try:
        look(served)
        version = served.served("digits")
        assert version is not None
        engine = weakref.ref(version.engine)
        del version, served
        assert engine() is None
    finally:
        gc.enable()


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no such folder"):
        scan(tmp_path / "none")


def test_probes_left_out_are_announced_as_not_probed_and_odd_globs_are_said(tmp_path: Path) -> None:
    announced = []
    settings = CaptureSettings(Device(1, 1 << 30), probes=("relu[12]", "!relu1", "conv*"))
    served = Models(tmp_path, AgentMetrics(), lambda *deployment: announced.append(deployment), settings)
    put(tmp_path, "1", small_cnn())
    with capture_logs() as logs:
        look(served)
    (_, _, _, instrumented, _) = announced[0]
    assert [(probe.name, probe.position) for probe in instrumented.probes] == [
        ("image", 0),
        ("relu2", 2),
        ("fc2_out", 4),
    ]
    left_out = {item.name for item in instrumented.not_probed if item.reason == "left out by --probes"}
    assert left_out == {"relu1", "relu3"}
    (warning,) = [entry for entry in logs if entry["event"] == "probes.unmatched"]
    assert warning["globs"] == ["conv*"] and "relu3" in warning["names"]


def test_a_choice_of_nothing_refuses_the_model(tmp_path: Path) -> None:
    served = models(tmp_path, Announced(), probes=("!*",))
    put(tmp_path, "1", small_cnn())
    with capture_logs() as logs:
        look(served)
    assert [entry["event"] for entry in logs] == ["model.refused"]
    assert "leaves nothing to observe" in logs[0]["reason"]


def test_a_budget_is_timed_at_load_and_shown(tmp_path: Path) -> None:
    metrics = AgentMetrics()
    served = models(tmp_path, Announced(), metrics, overhead_budget=10.0, calibration_seconds=1.0)
    put(tmp_path, "1", small_cnn())
    look(served)
    ratio = metrics.registry.get_sample_value("reluscope_agent_capture_overhead_ratio", VERSION_1)
    assert ratio is not None and 1 < ratio < 11
    assert metrics.registry.get_sample_value("reluscope_agent_probe_groups", VERSION_1) == 1
    shutil.rmtree(tmp_path / "digits")
    look(served)
    assert metrics.registry.get_sample_value("reluscope_agent_probe_groups", VERSION_1) is None


def test_a_budget_that_could_not_be_timed_is_not_said_to_be_exceeded(tmp_path: Path) -> None:
    b = Builder()
    x = b.node("Relu", [b.node("Conv", ["x", b.weight("w", 4, 3, 5, 5)], "conv")], "relu")
    served = models(tmp_path, Announced(), overhead_budget=0.01, calibration_extent=1)
    put(tmp_path, "1", b.model({"x": ["N", 3, "H", "W"]}, {x: 4}))
    with capture_logs() as logs:
        served.refresh()
    said = {one["event"]: one for one in logs}
    assert (said["calibration.impossible"]["model"], said["calibration.impossible"]["version"]) == ("digits", "1")
    assert "could not be timed" in said["budget.unmet"]["hint"]


def test_a_probe_whose_rows_are_not_the_requests_is_said_once_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = PooledOutputs.read
    monkeypatch.setattr(  # as if the batch had two rows for each request
        PooledOutputs,
        "read",
        lambda self, values, requests: genuine(self, doubled(values) if "relu1" in self.mean else values, requests),
    )
    reasons = PooledOutputs.misfit
    monkeypatch.setattr(
        PooledOutputs, "misfit", lambda self, values, requests: reasons(self, doubled(values), requests)
    )
    metrics = AgentMetrics()
    served = models(tmp_path, Announced(), metrics)
    put(tmp_path, "1", small_cnn())
    served.refresh()
    version = served.served("digits")
    assert version is not None
    with capture_logs() as logs:
        for _ in range(2):
            assert "relu1" not in version.engine.run(images(2))
    assert [(one["event"], one["probe"]) for one in logs] == [("probe.absent", "relu1")]
    assert "shape [4, 4] for 2 requests" in logs[0]["reason"]
    assert metrics.registry.get_sample_value("reluscope_agent_absent_probes", VERSION_1) == 1


def doubled(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([value, value]) for name, value in values.items()}


def test_a_body_that_did_not_run_is_no_misfit() -> None:
    outputs = PooledOutputs("mean", "mean", None)
    assert outputs.misfit({"mean": np.empty((0, 1))}, 2) is None
    assert outputs.misfit({"mean": np.empty((2, 3))}, 2) is None
    assert outputs.misfit({"mean": np.empty((4, 3))}, 2) is not None


def test_stop_ends_the_timing_and_the_former_version_goes_on(tmp_path: Path) -> None:
    served = models(tmp_path, Announced(), overhead_budget=0.1)
    put(tmp_path, "1", small_cnn())
    look(served)
    put(tmp_path, "2", small_cnn())
    looks = []

    def stopped() -> bool:
        looks.append(1)
        return len(looks) > 4

    served.refresh()
    served.refresh(stopped)
    metadata = served.version("digits", None)
    assert metadata is not None and metadata.version == "1"
    look(served)
    metadata = served.version("digits", None)
    assert metadata is not None and metadata.version == "2", "it is no broken version"


def test_giving_the_gpu_up_is_seen_in_metrics_and_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, metrics = Gpu(room=4), AgentMetrics()
    monkeypatch.setattr(loading, "Engine", lambda *arguments: Engine(*arguments, build=gpu.build))
    served = Models(tmp_path, metrics, Announced(), CaptureSettings(GpuDevice(1, 1 << 30)))
    put(tmp_path, "1", small_cnn())
    look(served)
    value = metrics.registry.get_sample_value
    assert value("reluscope_agent_gpu_fallback", VERSION_1) == 0
    assert value("reluscope_agent_out_of_memory_total", VERSION_1) == 0
    gpu.room = -1
    version = served.served("digits")
    assert version is not None
    with capture_logs() as logs:
        version.engine.run(images(2))
    assert value("reluscope_agent_gpu_fallback", VERSION_1) == 1
    assert value("reluscope_agent_out_of_memory_total", VERSION_1) == 2
    assert value("reluscope_agent_model_info", {**VERSION_1, "provider": "CPUExecutionProvider"}) == 1
    assert value("reluscope_agent_model_info", {**VERSION_1, "provider": "CUDAExecutionProvider"}) is None
    assert [entry["event"] for entry in logs] == ["replay.out_of_memory", "replay.out_of_memory", "replay.gpu_given_up"]


def test_a_thread_is_never_made_less_nice() -> None:
    levels = []

    def thread() -> None:
        for level in (3, 1):
            be_nice(level)
            levels.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    assert levels[0] >= 3 and levels[1] == levels[0]
