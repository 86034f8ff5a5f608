"""After a deployment the former version runs some of the same requests; only sums of many of them leave the pod."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from structlog.testing import capture_logs

from agent import wire
from agent.capture.engine import Engine
from agent.delivery.outbox import Outbox
from agent.delivery.sender import Sender
from agent.delivery.small_groups import DEFAULT_GROUP
from agent.instrument import instrument
from agent.instrument.pooled import Pooled
from agent.metrics import AgentMetrics
from agent.paired.kinship_sums import KinshipSums, sampled
from agent.paired.kinships import Kinships
from agent.replay import Replayer, output_types
from agent.replay.rows import Batch
from agent.serving.models import Served
from agent.wire import KINSHIP_CHANNELS
from detector.statistics.kinship import likeness
from tests.agent.models import small_cnn
from tests.agent.paired.builders import images, permuted, serve, settings

LEAST_GROUP = DEFAULT_GROUP.requests


class Agent:
    """The kinship loop beside replay of version 2; version 1 is ``former``."""

    def __init__(self, tmp_path: Path, model: onnx.ModelProto, former: onnx.ModelProto | None, **changed: Any) -> None:
        repository = tmp_path / "repo" / "digits"
        if former is not None:
            self.former_digest = serve(repository / "1" / "model.onnx", former).digest
        served = serve(repository / "2" / "model.onnx", model)
        engine = cast(Engine, SimpleNamespace(provider="CPUExecutionProvider", batch_size=None, groups=1))
        self.served: Served = replace(served, engine=engine)
        self.replayer = Replayer(instrument(model, output_types), threads=1, gpu_mem_limit=1 << 30, provider="cpu")
        self.metrics = AgentMetrics()
        self.outbox = Outbox(tmp_path / "outbox.db", 1 << 24)
        sender = Sender(self.outbox, "pod-1", changed.pop("max_message_bytes", 1 << 20))
        self.kinships = Kinships(settings(**changed), sender, self.metrics, lambda: 70_000)
        self.kinships.refresh({self.served.entry.key: self.served})

    def replay(self, requests: int, seed: int = 0) -> None:
        inputs = {"image": images(requests, seed)}
        rows = Batch(inputs, np.arange(requests), np.zeros(requests, np.int64), whole=False)
        self.kinships.offer(self.served, rows, self.replayer.run(inputs))

    def compared(self) -> float:
        labels = {"model": "digits", "version": "2"}
        return self.metrics.registry.get_sample_value("reluscope_agent_kinship_requests_total", labels) or 0.0

    def work(self, done: Callable[[], bool]) -> list[wire.Kinship]:
        """Runs the loop until ``done``, stops it, and returns what it sent."""
        stop = threading.Event()
        thread = threading.Thread(target=self.kinships.run, args=(stop,))
        thread.start()
        deadline = time.monotonic() + 20
        while not done() and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        assert done()
        envelopes = [wire.decode(item.payload) for item in self.outbox.pending(100)]
        assert {(one.model, one.version, one.digest) for one in envelopes} <= {("digits", "2", self.served.digest)}
        return [one.body for one in envelopes if isinstance(one.body, wire.Kinship)]


def added(kinships: list[wire.Kinship]) -> dict[str, wire.LayerKinship]:
    found: dict[str, wire.LayerKinship] = {}
    for one in (layer for body in kinships for layer in body.layers):
        found[one.name] = wire.merge_layers(found[one.name], one) if one.name in found else one
    return found


@pytest.mark.parametrize(("former", "verdict"), [(small_cnn(), "near"), (permuted(small_cnn()), "near")])
def test_the_first_requests_are_compared_in_groups_and_no_more(
    tmp_path: Path, former: onnx.ModelProto, verdict: str
) -> None:
    agent = Agent(tmp_path, small_cnn(), former)
    for seed in range(20):
        agent.replay(15, seed)
    sent = agent.work(lambda: agent.compared() >= 100)
    assert agent.compared() == 105  # whole batches
    assert {(one.former_version, one.former_digest, one.at_ms) for one in sent} == {("1", agent.former_digest, 70_000)}
    assert all(layer.n >= LEAST_GROUP for one in sent for layer in one.layers)
    found = added(sent)
    assert {name: one.n for name, one in found.items()} == dict.fromkeys(("relu1", "relu2", "relu3"), 90)
    assert likeness(found.values()).verdict == verdict  # permuted: two layers of three are as they were


def test_the_sums_are_those_of_both_sides_on_the_same_requests(tmp_path: Path) -> None:
    agent = Agent(tmp_path, permuted(small_cnn()), small_cnn())
    agent.replay(30)
    found = added(agent.work(lambda: agent.compared() == 30))
    own = Replayer(instrument(small_cnn(), output_types), threads=1, gpu_mem_limit=1 << 30, provider="cpu")
    old, new = (side.run({"image": images(30)})["relu1"].mean.astype(np.float64) for side in (own, agent.replayer))
    np.testing.assert_allclose(found["relu1"].former, old.sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["relu1"].product, (old * new).sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["relu1"].neighbour_product, (new * np.roll(old, -1, 1)).sum(axis=0), rtol=1e-6)


def test_rows_that_do_not_count_are_run_but_not_summed(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn(), permuted(small_cnn()))
    inputs, kept = {"image": images(40)}, np.arange(39, 9, -1)
    pooled = agent.replayer.run(inputs)
    counted = {name: Pooled(one.mean[kept], one.maximum[kept], one.fraction[kept]) for name, one in pooled.items()}
    agent.kinships.offer(agent.served, Batch(inputs, kept, np.zeros(30, np.int64), whole=True), counted)
    found = added(agent.work(lambda: agent.compared() == 30))
    other = Replayer(instrument(permuted(small_cnn()), output_types), threads=1, gpu_mem_limit=1 << 30, provider="cpu")
    former, served = (side.run(inputs)["relu1"].mean[kept].astype(np.float64) for side in (other, agent.replayer))
    np.testing.assert_allclose(found["relu1"].product, (former * served).sum(axis=0), rtol=1e-6)


def test_fewer_requests_than_a_group_never_leave(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn(), small_cnn())
    agent.replay(LEAST_GROUP - 1)
    assert agent.work(lambda: agent.compared() == LEAST_GROUP - 1) == []
    sums = KinshipSums(LEAST_GROUP)
    values = np.ones((LEAST_GROUP + 5, 2))
    values[3:, 0] = np.nan
    sums.add({"relu": values}, {"relu": np.ones_like(values)})
    assert sums.take() == ()  # three finite ones
    sums.add({"relu": np.full((LEAST_GROUP, 2), np.nan)}, {"relu": np.ones((LEAST_GROUP, 2))})
    assert sums.take() == ()


def test_one_request_among_zeros_is_told_no_finer_than_its_bucket() -> None:
    values = np.zeros((LEAST_GROUP, 3))
    values[7] = 0.73211, -5.5, 1.1
    sums = KinshipSums(LEAST_GROUP)
    sums.add({"relu": values}, {"relu": 1.0001 * values})
    (told,) = sums.take()
    for number in (told.served, told.former):
        off = np.abs(number / values[7] - 1)
        assert (off > 1e-3).all() and (off < 0.03).all()
    np.testing.assert_array_equal(told.served, told.former)
    rng = np.random.default_rng(0)
    x, y = rng.exponential(size=(2, 2 * LEAST_GROUP, 3))
    x[LEAST_GROUP:], y[: LEAST_GROUP - 1] = 0, 0  # enough values on either side, one request with both
    sums.add({"relu": x}, {"relu": y})
    (told,) = sums.take()
    np.testing.assert_allclose(told.served, x.sum(axis=0))
    assert (np.abs(told.product / (x * y).sum(axis=0) - 1) > 1e-4).all()


def test_one_request_that_outweighs_the_others_is_told_no_finer_than_its_bucket() -> None:
    values = np.full((LEAST_GROUP, 1), 1e-9)
    values[7] = 0.73211
    sums = KinshipSums(LEAST_GROUP)
    sums.add({"relu": values}, {"relu": np.ones_like(values)})
    (told,) = sums.take()
    assert 1e-3 < abs(told.served[0] / 0.73211 - 1) < 0.03
    assert 1e-3 < abs(told.served_sq[0] / 0.73211**2 - 1) < 0.06


def test_one_request_on_which_the_versions_differ_is_not_told_by_the_difference() -> None:
    """As where the new version cuts off at 6 what the former let through."""
    former = np.random.default_rng(0).uniform(1, 5, size=(LEAST_GROUP, 2))
    former[7] = 7.3319, 6.5
    served = np.minimum(former, 6)
    sums = KinshipSums(LEAST_GROUP)
    sums.add({"relu": served}, {"relu": former})
    (told,) = sums.take()
    np.testing.assert_allclose(told.former, former.sum(axis=0))
    for ours, true in ((told.served, served), (told.served_sq, served**2), (told.product, served * former)):
        assert (np.abs(ours - true.sum(axis=0)) > 1e-3).all()
        np.testing.assert_allclose(ours, true.sum(axis=0), rtol=0.03)


def test_without_a_former_version_or_with_the_option_off_nothing_is_kept(tmp_path: Path) -> None:
    for folder, former, wanted in (("a", None, 100), ("b", small_cnn(), 0)):
        (tmp_path / folder).mkdir()
        agent = Agent(tmp_path / folder, small_cnn(), former, kinship_requests=wanted)
        agent.replay(30)
        assert agent.kinships._queue.depth() == (0, 0)


def test_a_former_file_that_cannot_run_is_said_once_and_left(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn(), small_cnn())
    (tmp_path / "repo/digits/1/model.onnx").write_bytes(b"no model")
    agent.replay(30)
    agent.replay(30, 1)
    with capture_logs() as logs:
        assert agent.work(lambda: agent.kinships._queue.depth()[0] == 0 and bool(logs)) == []
    assert [one["event"] for one in logs] == ["kinship.unusable"]
    before = agent.kinships._queue.depth()
    agent.replay(30)
    assert agent.kinships._queue.depth() == before
    (tmp_path / "other").mkdir()
    limited = Agent(tmp_path / "other", small_cnn(), small_cnn(), model_bytes=10)
    limited.replay(30)
    with capture_logs() as logs:
        assert limited.work(lambda: bool(logs)) == []
    assert "more than --paired-model-mib allows" in logs[0]["reason"]


def test_wide_layers_are_sampled_and_large_kinships_are_split(tmp_path: Path) -> None:
    wide = np.arange(1000.0)[np.newaxis].repeat(2, axis=0)
    places = sampled(wide)[0]
    assert (len(places), places[0], places[-1]) == (KINSHIP_CHANNELS, 0, 999)
    assert np.diff(places).min() >= 15
    assert sampled(wide[:, :5]).shape == (2, 5)
    agent = Agent(tmp_path, small_cnn(), small_cnn(), max_message_bytes=300)
    agent.replay(30)
    sent = agent.work(lambda: agent.compared() == 30)
    assert [len(one.layers) for one in sent] == [1, 1, 1]


def test_requests_of_a_version_that_was_replaced_are_dropped(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn(), small_cnn())
    agent.replay(30)
    agent.kinships.refresh({})
    assert agent.work(lambda: agent.kinships._queue.depth()[0] == 0) == []
    assert agent.compared() == 0
