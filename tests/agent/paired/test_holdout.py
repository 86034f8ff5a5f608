"""Accuracy on a labelled holdout, at every deployment and change; whatever is wrong with the file is said."""

from __future__ import annotations

import threading
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from structlog.testing import capture_logs

from agent import wire
from agent.capture.settings import CaptureSettings
from agent.delivery.outbox import Outbox
from agent.delivery.sender import Sender
from agent.intake.tensors import TensorSpec
from agent.metrics import AgentMetrics
from agent.paired.holdout import HoldoutError, check_classes, read_holdout
from agent.paired.holdouts import Holdouts
from agent.replay import Device, FullSession
from agent.serving.models import Models
from tests.agent.comparisons import same
from tests.agent.models import Builder, small_cnn
from tests.agent.paired.builders import IMAGE, by_name, images, permuted, settings, with_weight


def save(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def predicted(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    classes: np.ndarray = session.run(None, {"image": inputs})[0].argmax(axis=1)
    return classes


class Agent:
    """A repository, what follows it, and what it sends."""

    def __init__(self, tmp_path: Path, **changed: Any) -> None:
        self.root = tmp_path / "repo"
        self.metrics = AgentMetrics()
        self.stop = threading.Event()
        self.outbox = Outbox(tmp_path / "outbox.db", 1 << 24)
        sender = Sender(self.outbox, "pod-1", 1 << 20)
        self.now = 1_000_000
        self.holdouts = Holdouts(settings(**changed), sender, self.metrics, self.stop, lambda: self.now)
        self.models = Models(
            self.root,
            self.metrics,
            sender.deployment,
            CaptureSettings(Device(1, 1 << 30), overhead_budget=None),
            on_refreshed=self.holdouts.refresh,
        )

    def put(self, version: str, model: onnx.ModelProto, name: str = "model.onnx") -> None:
        path = self.root / "digits" / version / name
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)

    def sent(self) -> list[Any]:
        """Bodies of the messages since the last look."""
        items = self.outbox.pending(100)
        self.outbox.acknowledge(item.rowid for item in items)
        return [wire.decode(item.payload).body for item in items]

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"reluscope_agent_{name}", labels)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def test_accuracy_of_served_and_reference_model(agent: Agent) -> None:
    inputs = images(100)
    labels = predicted(small_cnn(), inputs)
    labels[:10] = (labels[:10] + 1) % 3  # the reference gets 90 of 100
    damaged = with_weight(small_cnn(), "fc2_b", [1.61, -1.56, 1.46])  # about as often the one class as the other
    served = predicted(damaged, inputs)
    save(agent.root / "digits" / "1" / "holdout.npz", image=inputs.astype(np.float64), labels=labels)
    agent.put("1", damaged)
    agent.put("1", small_cnn(), "reference.onnx")
    agent.models.refresh()
    deployment, got = agent.sent()
    assert isinstance(deployment, wire.Deployment)
    assert isinstance(got, wire.Comparison)
    right, reference = served == labels, predicted(small_cnn(), inputs) == labels
    assert (got.kind, got.baseline, len(got.baseline_digest)) == ("holdout", "holdout.npz", 64)
    assert got.reference == "reference.onnx"
    assert (got.n, got.accuracy_n, got.baseline_n) == (100, 100, 100)
    assert (got.served_correct, got.baseline_correct) == (right.sum(), 90)
    assert 0 < right.sum() < 90
    assert got.only_served_correct == (right & ~reference).sum()
    assert got.only_baseline_correct == (reference & ~right).sum()
    assert got.top1_agree == (served == predicted(small_cnn(), inputs)).sum()
    assert by_name(got)["relu3"].n == 100
    assert wire.sqnr_db(by_name(got)["relu3"]) == np.inf
    assert wire.sqnr_db(by_name(got)["fc2_out"]) < 40
    assert agent.value("validation_accuracy", model="digits", version="1") == right.mean()
    delta = agent.value("quantized_accuracy_delta", model="digits", version="1")
    assert delta == pytest.approx(right.mean() - 0.9)


def test_groups_count_every_request_once_and_every_probe(tmp_path: Path) -> None:
    agent = Agent(tmp_path, fetch_bytes=3200)
    save(agent.root / "digits" / "holdout.npz", image=images(40), labels=np.zeros(40, np.uint8))
    agent.put("1", permuted(small_cnn()))
    agent.put("1", small_cnn(), "reference.onnx")
    agent.models.refresh()
    got = agent.sent()[1]
    assert (got.n, got.accuracy_n, got.top1_n) == (40, 40, 40)
    assert {name: item.n for name, item in by_name(got).items()} == dict.fromkeys(
        ["relu1", "relu2", "relu3", "fc2_out"], 40
    )


def test_without_a_reference_there_is_accuracy_alone(agent: Agent) -> None:
    inputs = images(33)
    save(agent.root / "digits" / "holdout.npz", image=inputs, labels=predicted(small_cnn(), inputs))
    agent.put("1", small_cnn())
    agent.models.refresh()
    got = agent.sent()[1]
    assert (got.accuracy_n, got.served_correct, got.baseline_n, got.top1_n, got.probes) == (33, 33, 0, 0, ())
    assert got.reference == ""
    assert agent.value("validation_accuracy", model="digits", version="1") == 1.0
    assert agent.value("quantized_accuracy_delta", model="digits", version="1") is None


def test_a_former_version_is_named_as_what_the_holdout_ran_against(tmp_path: Path) -> None:
    agent = Agent(tmp_path, compare_previous=True)
    save(agent.root / "digits" / "holdout.npz", image=images(5), labels=np.zeros(5, int))
    agent.put("3", small_cnn())
    agent.put("4", permuted(small_cnn()))
    agent.models.refresh()
    got = agent.sent()[1]
    assert (got.baseline_n, got.reference) == (5, "3")


def test_the_provider_is_the_one_that_ran_it(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FullSession, "provider", "CUDAExecutionProvider")
    save(agent.root / "digits" / "holdout.npz", image=images(70), labels=np.zeros(70, int))
    agent.put("1", small_cnn())
    agent.models.refresh()
    got = agent.sent()[1]
    assert (got.provider, got.n) == ("CUDAExecutionProvider", 70)


def test_an_unusable_reference_costs_the_delta_only(agent: Agent) -> None:
    save(agent.root / "digits" / "holdout.npz", image=images(5), labels=np.zeros(5, int))
    agent.put("1", small_cnn())
    (agent.root / "digits" / "1" / "reference.onnx").write_bytes(b"no model")
    agent.models.refresh()
    got = agent.sent()[1]
    assert (got.accuracy_n, got.reference) == (5, "")
    assert agent.value("paired_failed_total", model="digits", kind="holdout", reason="baseline_unusable") == 1


def test_it_runs_again_when_model_reference_or_holdout_change_and_not_else(agent: Agent) -> None:
    path = save(agent.root / "digits" / "holdout.npz", image=images(5), labels=np.zeros(5, int))
    agent.put("1", small_cnn())
    agent.models.refresh()
    agent.models.refresh()
    assert [type(body) for body in agent.sent()] == [wire.Deployment, wire.Comparison]
    save(path, image=images(6), labels=np.zeros(6, int))
    agent.models.refresh()
    assert [body.accuracy_n for body in agent.sent()] == [6]
    agent.put("1", small_cnn(), "reference.onnx")
    agent.models.refresh()
    assert [body.baseline_n for body in agent.sent()] == [6]
    agent.put("2", permuted(small_cnn()))
    agent.models.refresh()
    agent.models.refresh()
    assert [type(body) for body in agent.sent()] == [wire.Deployment, wire.Comparison]
    assert agent.value("validation_accuracy", model="digits", version="1") is None, "that version has gone"
    assert agent.value("validation_accuracy", model="digits", version="2") is not None


def test_a_result_is_told_again_while_its_files_are_there(tmp_path: Path) -> None:
    agent = Agent(tmp_path, holdout_repeat_seconds=60)
    path = save(agent.root / "digits" / "holdout.npz", image=images(5), labels=np.zeros(5, int))
    agent.put("1", small_cnn())
    agent.put("1", small_cnn(), "reference.onnx")
    agent.models.refresh()
    first = agent.sent()[1]
    for passed, told in ((59_999, 0), (1, 1), (59_999, 0), (1, 1)):
        agent.now += passed
        agent.models.refresh()
        again = agent.sent()
        assert len(again) == told
    (last,) = again
    assert (last.start_ms, last.end_ms) == (agent.now, agent.now + 1)
    assert same(replace(last, start_ms=first.start_ms, end_ms=first.end_ms), first)
    save(path, image=images(5), labels=np.full(5, 7))  # no class of the model's
    agent.models.refresh()
    assert [body.n for body in agent.sent()] == [0], "what was told is of another file"
    agent.now += 60_000
    agent.models.refresh()
    assert agent.sent() == []


def test_a_holdout_that_was_deleted_is_withdrawn(agent: Agent) -> None:
    path = save(agent.root / "digits" / "holdout.npz", image=images(5), labels=np.zeros(5, int))
    agent.put("1", small_cnn())
    agent.models.refresh()
    told = agent.sent()[1]
    path.unlink()
    agent.now += 1
    agent.models.refresh()
    (gone,) = agent.sent()
    assert (gone.kind, gone.baseline, gone.baseline_digest) == ("holdout", "holdout.npz", told.baseline_digest)
    assert (gone.n, gone.accuracy_n, gone.probes, gone.start_ms) == (0, 0, (), agent.now)
    assert agent.value("validation_accuracy", model="digits", version="1") is None
    agent.now += 10_000_000
    agent.models.refresh()
    assert agent.sent() == []


def test_stopping_interrupts_it_and_sends_nothing(agent: Agent) -> None:
    save(agent.root / "digits" / "holdout.npz", image=images(5), labels=np.zeros(5, int))
    agent.put("1", small_cnn())
    agent.stop.set()
    agent.models.refresh()
    assert [type(body) for body in agent.sent()] == [wire.Deployment]


def test_a_bad_holdout_is_logged_once_and_the_model_serves_all_the_same(agent: Agent) -> None:
    save(agent.root / "digits" / "holdout.npz", image=images(5), labels=np.full(5, 3))
    agent.put("1", small_cnn())
    with capture_logs() as logs:
        agent.models.refresh()
        agent.models.refresh()
    (failed,) = [entry for entry in logs if entry["event"] == "holdout.failed"]
    assert "5 labels are no class: the model has classes 0 to 2" in failed["reason"]
    assert [type(body) for body in agent.sent()] == [wire.Deployment]
    assert agent.value("paired_failed_total", model="digits", kind="holdout", reason="holdout_unusable") == 1
    assert agent.models.served("digits") is not None


def test_a_model_without_classes_is_named(agent: Agent) -> None:
    b = Builder()
    x = b.node("Relu", [b.conv("image", "conv1", 1, 4)], "relu1")
    agent.put("1", b.model({"image": ["N", 1, 8, 8]}, {x: 4}))
    save(agent.root / "digits" / "holdout.npz", image=images(5), labels=np.zeros(5, int))
    with capture_logs() as logs:
        agent.models.refresh()
    assert any("no class output" in entry.get("reason", "") for entry in logs)


ZEROS = np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": images(4)}, r"no array 'labels'; it has \['image'\]"),
        ({"image": images(4), "labels": np.zeros(4)}, "'labels' is float64; class numbers have to be integers"),
        ({"image": images(4), "labels": np.zeros((4, 1), int)}, r"'labels' has shape \[4, 1\], not \(n,\)"),
        ({"image": images(0), "labels": np.zeros(0, int)}, r"'labels' has shape \[0\]"),
        ({"image": images(4), "labels": np.full(4, 1 << 63, np.uint64)}, "beyond 63 bits"),
        ({"labels": ZEROS}, "no array for the model's input 'image'"),
        ({"image": images(4), "labels": ZEROS, "mask": ZEROS}, "array 'mask' is no input of the model"),
        ({"image": images(5), "labels": ZEROS}, r"'image' has shape \[5, 1, 8, 8\], but there are 4 labels"),
        ({"image": np.float32(1), "labels": ZEROS}, r"'image' has shape \[\], but there are 4 labels"),
        ({"image": np.ones((4, 1, 8, 9), "f4"), "labels": ZEROS}, r"the model wants \[-1, 1, 8, 8\]"),
        ({"image": np.ones((4, 64), "f4"), "labels": ZEROS}, r"the model wants \[-1, 1, 8, 8\]"),
        ({"image": np.ones((4, 1, 8, 8), "i8"), "labels": ZEROS}, "'image' is int64, the model wants float32"),
        ({"image": np.full((4, 1, 8, 8), np.nan, "f4"), "labels": ZEROS}, "'image' has 256 elements that are NaN"),
        (
            {"image": np.full((4, 1, 8, 8), 1e300), "labels": ZEROS},
            "'image' has 256 elements that are NaN or infinite as f",
        ),
        ({"image": np.full((4, 1, 8, 8), None), "labels": ZEROS}, "not an .npz file of plain arrays"),
    ],
)
def test_what_is_wrong_with_a_holdout_is_said(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "holdout.npz", **arrays)
    with pytest.raises(HoldoutError, match=message) as caught:
        read_holdout(path, [IMAGE], {}, 1 << 20)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_holdout_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "holdout.npz"
    with pytest.raises(HoldoutError, match=r"not an \.npz file"):
        read_holdout(path, [IMAGE], {}, 1 << 20)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(HoldoutError, match=r"not an \.npz file"):
        read_holdout(path, [IMAGE], {}, 1 << 20)
    np.savez_compressed(path, image=np.zeros((1000, 1, 8, 8), np.float32), labels=np.zeros(1000, int))
    assert path.stat().st_size < 10_000
    with pytest.raises(HoldoutError, match="bytes unpacked, more than 10000; use fewer examples or raise"):
        read_holdout(path, [IMAGE], {}, 10_000)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(2, 3)", b"(2, 3 "),  # numpy's own reader fails with a TokenError
        (b"(2, 3), ", b"(9999999, 3), "),  # and makes room for this before it finds that there is less
        (b"'<f8'", b"'|O8'"),
    ],
    ids=["header", "shape", "objects"],
)
def test_a_damaged_array_is_refused_without_taking_memory(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = save(tmp_path / "h.npz", x=np.zeros((2, 3)), labels=[0, 1])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = members["x.npy"][:128]
    assert old in header
    changed = header.replace(old, new)[:127].rstrip(b"\n").ljust(127) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", changed + members["x.npy"][128:])
        archive.writestr("labels.npy", members["labels.npy"])
    tracemalloc.start()
    with pytest.raises(HoldoutError, match=r"numpy\.savez writes one"):
        read_holdout(path, (TensorSpec("x", "FP64", (-1, 3)),), {"x": 0}, 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_integers_and_texts(tmp_path: Path) -> None:
    path = save(tmp_path / "holdout.npz", tokens=np.ones((2, 5), np.int32), labels=np.array([1, 0], np.int8))
    got = read_holdout(path, [TensorSpec("tokens", "INT64", (-1, -1))], {}, 1 << 20)
    assert got.inputs["tokens"].dtype == np.int64
    assert got.labels.tolist() == [1, 0]
    with pytest.raises(HoldoutError, match="is BYTES, which cannot be held out"):
        read_holdout(path, [TensorSpec("tokens", "BYTES", (-1, -1))], {}, 1 << 20)


def test_labels_have_to_be_classes() -> None:
    path = Path("holdout.npz")
    check_classes(path, np.array([0, 2]), 3)
    with pytest.raises(HoldoutError, match="1 labels are no class: the model has classes 0 to 2"):
        check_classes(path, np.array([0, -1]), 3)
