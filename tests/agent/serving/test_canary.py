"""Two versions of a model at a time: each has its windows, its gauges and its comparisons; the server decides."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pytest
from structlog.testing import capture_logs

from agent import wire
from agent.budget.duty import DutyLimits
from agent.budget.owner import Budget, BudgetLimits
from agent.capture.settings import CaptureSettings
from agent.delivery.outbox import Outbox
from agent.delivery.sender import Sender
from agent.delivery.small_groups import MinGroup
from agent.delivery.windowing import Accumulator
from agent.intake.queue import ByteQueue, Captured
from agent.intake.unpacking import Limits
from agent.metrics import AgentMetrics
from agent.rates.governor import Budgets
from agent.replay import Device
from agent.serving.following import Following
from agent.serving.models import Models
from agent.serving.versions import ServerAnswer
from agent.serving.worker import Worker, WorkerSettings
from tests.agent.models import small_cnn
from tests.agent.serving.test_models import look, put


class Agent:
    """The agent from the catalog to the outbox; `ready` is what the server says, None where it cannot be asked."""

    def __init__(self, tmp_path: Path, most: int = 2, memory: int | None = None) -> None:
        self.root = tmp_path / "repo"
        self.root.mkdir()
        self.metrics = AgentMetrics()
        self.ready: dict[str, tuple[str, ...]] | None = None
        self.outbox = Outbox(tmp_path / "outbox.db", 1 << 24)
        self.queue: ByteQueue[Captured] = ByteQueue(1 << 24, 1000)
        sender = Sender(self.outbox, "pod-1", 1 << 20, group=MinGroup(1))
        sessions = None
        if memory is not None:
            sessions = Budget(BudgetLimits(DutyLimits(1.0), 1 << 30, memory * 4 // 3), self.metrics).sessions
        answer = lambda: None if self.ready is None else ServerAnswer(self.ready)  # noqa: E731
        self.models = Models(
            self.root,
            self.metrics,
            sender.deployment,
            CaptureSettings(Device(1, 1 << 30, memory=sessions), overhead_budget=None),
            following=Following(self.root, most, answer=answer),
        )
        settings = WorkerSettings(8, Budgets(1.0), Limits())
        self.worker = Worker(settings, self.models, self.queue, Accumulator(1000, 0), sender, self.metrics)

    def policy(self, text: str) -> None:
        (self.root / "digits").mkdir(exist_ok=True)
        (self.root / "digits" / "config.pbtxt").write_text(f"version_policy {{ {text} }}")

    def served(self) -> list[str]:
        return [one.version for one in self.models.models()]

    def default(self) -> str | None:
        metadata = self.models.version("digits", None)
        return metadata.version if metadata is not None and metadata.ready else None

    def infer(self, version: str | None, seed: int = 0) -> bool:
        """As intake does it: the version is looked up, and the request queued under it."""
        metadata = self.models.version("digits", version)
        if metadata is None or not metadata.ready:
            return False
        image = np.random.default_rng(seed).random((1, 1, 8, 8))
        tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
        body = orjson.dumps({"inputs": [tensor]})
        item = Captured(metadata.name, metadata.version, body, None, None, None, 1500)
        assert self.queue.offer(item, len(body), item.key)
        while self.queue.depth()[0]:
            self.worker.turn(0)
        return True

    def windows(self) -> dict[str, int]:
        """Requests by version."""
        sent = [wire.decode(item.payload) for item in self.outbox.pending(1000)]
        found = Counter[str]()
        for one in sent:
            if isinstance(one.body, wire.Window):
                found[one.version] += one.body.probes[0].summary.n
        return found

    def deployed(self) -> list[str]:
        sent = [wire.decode(item.payload) for item in self.outbox.pending(1000)]
        return [one.version for one in sent if isinstance(one.body, wire.Deployment)]


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def test_requests_go_to_the_version_that_they_name_else_to_the_highest(agent: Agent) -> None:
    agent.policy("latest { num_versions: 2 }")
    for version in ("1", "2", "3"):
        put(agent.root, version, small_cnn(opset=17 if version == "3" else 18))
    agent.models.refresh()
    assert (agent.served(), agent.default()) == (["2", "3"], "3")
    assert sorted(agent.deployed()) == ["2", "3"]
    assert agent.infer("2") and agent.infer("3") and agent.infer(None) and not agent.infer("1")
    agent.worker.turn(0)
    assert agent.windows() == {"2": 1, "3": 2}
    for version in ("2", "3"):
        labels = {"model": "digits", "version": version, "provider": "CPUExecutionProvider"}
        assert agent.metrics.registry.get_sample_value("reluscope_agent_model_info", labels) == 1


def test_the_server_is_followed_and_not_the_number(agent: Agent) -> None:
    for version in ("1", "2", "3"):
        put(agent.root, version, small_cnn())
    agent.ready = {"digits": ("1",)}
    agent.models.refresh()
    assert (agent.served(), agent.default()) == (["1"], "1")
    agent.ready = {"digits": ("1", "2")}  # a canary
    look(agent.models)
    assert (agent.served(), agent.default()) == (["1", "2"], "2")
    agent.ready = {"digits": ("1",)}  # rolled back
    look(agent.models)
    assert (agent.served(), agent.default()) == (["1"], "1")
    assert agent.deployed() == ["1", "2"], "what went on serving was not deployed again"
    labels = {"model": "digits", "version": "2", "provider": "CPUExecutionProvider"}
    assert agent.metrics.registry.get_sample_value("reluscope_agent_model_info", labels) is None
    agent.ready = {"digits": ()}
    look(agent.models)
    assert (agent.served(), agent.default()) == ([], None)


def test_what_the_server_took_out_gets_no_requests_while_its_successor_loads(agent: Agent) -> None:
    put(agent.root, "1", small_cnn())
    agent.ready = {"digits": ("1",)}
    agent.models.refresh()
    put(agent.root, "2", small_cnn())
    agent.ready = {"digits": ("2",)}
    agent.models.refresh()  # which finds the file new, and waits for another look
    metadata = agent.models.version("digits", None)
    assert metadata is not None and (metadata.version, metadata.ready) == ("2", False)
    assert agent.models.version("digits", "1") is None
    agent.models.refresh()
    assert agent.default() == "2"


def test_the_default_is_the_servers_even_where_its_file_is_missing_here(agent: Agent) -> None:
    put(agent.root, "1", small_cnn())
    agent.ready = {"digits": ("1", "2")}
    with capture_logs() as logs:
        look(agent.models)
    assert agent.served() == ["1"] and agent.infer("1") and not agent.infer(None)
    (missing,) = [one for one in logs if one["event"] == "versions.missing"]
    assert missing["versions"] == ["2"]


def test_without_a_server_the_former_versions_serve_until_the_new_ones_are_ready(agent: Agent) -> None:
    agent.policy("latest { num_versions: 2 }")
    put(agent.root, "1", small_cnn())
    put(agent.root, "2", small_cnn())
    agent.models.refresh()
    put(agent.root, "3", small_cnn())
    agent.models.refresh()
    assert (agent.served(), agent.default()) == (["1", "2"], "2")
    agent.models.refresh()
    assert (agent.served(), agent.default()) == (["2", "3"], "3")
    put(agent.root, "4", b"broken")
    look(agent.models)
    look(agent.models)
    assert agent.served() == ["3"], "the policy wants 3 and 4, and 4 was refused"
    shutil.rmtree(agent.root / "digits")
    look(agent.models)
    assert agent.served() == []


def test_no_more_versions_than_are_allowed(tmp_path: Path) -> None:
    agent = Agent(tmp_path, most=2)
    agent.policy("all {}")
    for version in ("1", "2", "3"):
        put(agent.root, version, small_cnn())
    with capture_logs() as logs:
        look(agent.models)
    assert agent.served() == ["2", "3"]
    (left_out,) = [one for one in logs if one["event"] == "versions.left_out"]
    assert left_out["versions"] == ["1"] and "--max-versions" in left_out["hint"]


def test_a_version_that_memory_has_no_room_for_waits_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(small_cnn().SerializeToString())
    agent = Agent(tmp_path, memory=size * 3 // 2)
    agent.policy("latest { num_versions: 2 }")
    put(agent.root, "1", small_cnn())
    put(agent.root, "2", small_cnn())
    with capture_logs() as logs:
        look(agent.models)
        look(agent.models)
    assert len(agent.served()) == 1
    deferred = [one for one in logs if one["event"] == "model.deferred"]
    assert len(deferred) == 1 and "raise --memory-mib" in deferred[0]["reason"]
    value = agent.metrics.registry.get_sample_value
    assert value("reluscope_agent_memory_refused_total", {"memory": "ram", "owner": "replay"}) == 1
    agent.policy("latest { num_versions: 1 }")  # the other is not wanted any more, and makes room at once
    (agent.root / "digits" / "2" / "model.onnx").touch()
    look(agent.models)
    look(agent.models)
    assert agent.served() == ["2"]
