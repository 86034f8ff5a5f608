"""The repository is followed: new versions are swapped in and announced, broken ones refused with a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from structlog.testing import capture_logs

from agent.metrics import AgentMetrics
from agent.models import Models
from agent.repository import RepositoryError, scan
from tests.agent.models import Builder, small_cnn


class Announced(list[tuple[str, str]]):
    def __call__(self, entry: object, digest: str, instrumented: object, provider: str) -> None:
        self.append((entry.version, provider))  # type: ignore[attr-defined]


def put(root: Path, version: str, model: onnx.ModelProto | bytes) -> Path:
    path = root / "digits" / version / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def models(root: Path, announced: Announced, metrics: AgentMetrics | None = None) -> Models:
    return Models(root, metrics or AgentMetrics(), announced, threads=1, gpu_mem_limit=1 << 30)


def test_the_highest_version_is_served_and_announced_once(tmp_path: Path) -> None:
    announced = Announced()
    served = models(tmp_path, announced)
    put(tmp_path, "9", small_cnn())
    put(tmp_path, "10", small_cnn())
    (tmp_path / "digits" / "11").mkdir()  # still being copied
    served.refresh()
    served.refresh()
    assert announced == [("10", "CPUExecutionProvider")]
    metadata = served.version("digits", None)
    assert metadata is not None
    assert metadata.version == "10"
    assert metadata.inputs[0].shape == (-1, 1, 8, 8)
    assert served.version("digits", "9") is None
    put(tmp_path, "11", small_cnn())
    served.refresh()
    assert [version for version, _ in announced] == ["10", "11"]


def test_the_same_content_written_again_is_no_deployment(tmp_path: Path) -> None:
    announced = Announced()
    served = models(tmp_path, announced)
    path = put(tmp_path, "1", small_cnn())
    served.refresh()
    path.touch()
    served.refresh()
    assert len(announced) == 1
    put(tmp_path, "1", small_cnn(opset=18))
    served.refresh()
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
        served.refresh()
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
    served.refresh()
    put(tmp_path, "2", content)
    with capture_logs() as logs:
        served.refresh()
        served.refresh()
    refused = [entry for entry in logs if entry["event"] == "model.refused"]
    assert len(refused) == 1 and reason in refused[0]["reason"], "one log line for one broken file"
    metadata = served.version("digits", None)
    assert metadata is not None
    assert metadata.version == "1"
    assert b'rejected_total{model="digits",reason="model_unusable"} 1.0' in metrics.render()


def test_a_removed_model_is_forgotten(tmp_path: Path) -> None:
    served = models(tmp_path, Announced())
    put(tmp_path, "1", small_cnn())
    served.refresh()
    shutil.rmtree(tmp_path / "digits")
    served.refresh()
    assert served.models() == []


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no such folder"):
        scan(tmp_path / "none")
