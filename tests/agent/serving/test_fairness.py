"""Two real models behind one budget, on a clock of their own: neither traffic nor slow runs of one starve the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson
import pytest

from agent import wire
from agent.budget.duty import Duty, DutyLimits
from agent.capture.settings import CaptureSettings
from agent.delivery.outbox import Outbox
from agent.delivery.sender import Sender
from agent.delivery.small_groups import MinGroup
from agent.delivery.windowing import Accumulator
from agent.intake.queue import ByteQueue, Captured
from agent.intake.unpacking import Limits
from agent.metrics import AgentMetrics
from agent.rates.governor import Budgets, Governors
from agent.rates.samplers import Samplers
from agent.rates.sampling import Sampler
from agent.rates.throttle import Throttle
from agent.replay import Device
from agent.serving.models import Models
from agent.serving.worker import Worker, WorkerSettings
from tests.agent.models import small_cnn

BUSY, QUIET = ("busy", "1"), ("quiet", "1")
SHARE = 0.25
Costs = dict[tuple[str, str], float]


class Pod:
    """The agent's way from the sample to the windows, with two models; `cost` is what a request takes, in seconds."""

    def __init__(self, tmp_path: Path, cost: Costs, patch: pytest.MonkeyPatch, queue_bytes: int = 1 << 22) -> None:
        self.begin = self.now = 60_000.0
        self.arriving: dict[tuple[str, str], int] = {}
        self._sent: dict[tuple[str, str], int] = {}
        self.metrics = AgentMetrics()
        self.queue: ByteQueue[Captured] = ByteQueue(queue_bytes, 1000)
        self.outbox = Outbox(tmp_path / "outbox.db", 1 << 26)
        sender = Sender(self.outbox, "pod-1", 1 << 20, group=MinGroup(1))
        for model, version in cost:
            path = tmp_path / "repo" / model / version / "model.onnx"
            path.parent.mkdir(parents=True)
            path.write_bytes(small_cnn().SerializeToString())
        settings = CaptureSettings(Device(1, 1 << 30), overhead_budget=None)
        self.models = Models(tmp_path / "repo", self.metrics, sender.deployment, settings)
        self.models.refresh()
        for key, seconds in cost.items():
            served = self.models.served(*key)
            assert served is not None
            patch.setattr(served.engine, "run", self._slowed(served.engine.run, seconds))
        clock = lambda: self.now  # noqa: E731
        self.duty = Duty(DutyLimits(SHARE), clock)
        budgets = Budgets(SHARE)
        self.worker = Worker(
            WorkerSettings(8, budgets, Limits()),
            self.models,
            self.queue,
            Accumulator(60_000, 0),
            sender,
            self.metrics,
            lambda: int(self.now * 1000),
            duty=self.duty,
            monotonic=clock,
        )
        self.samplers = Samplers(1.0, lambda rate: Sampler(rate, draw=Random(0).random))
        governors = Governors(1.0, budgets)
        self.throttle = Throttle(
            governors, self.samplers, self.queue, self.worker.meters, self.duty, self.metrics, clock
        )
        self.body = orjson.dumps(
            {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}]}
        )

    def _slowed(self, run: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slowed(inputs: dict[str, np.ndarray]) -> Any:
            self.pass_by(seconds * len(inputs["image"]))
            return run(inputs)

        return slowed

    def pass_by(self, seconds: float) -> None:
        """Requests come while time passes, whatever the replay thread is at, and once a second the rates are set."""
        until = self.now + seconds
        while self.now < until - 1e-9:
            before, self.now = self.now, min(until, self.now + 0.02)
            for key, per_second in self.arriving.items():
                while (number := self._sent.get(key, 0)) < (self.now - self.begin) * per_second:
                    self._sent[key] = number + 1
                    self._arrive(key)
            if int(self.now) > int(before):
                self.throttle.step()

    def run(self, seconds: float, arriving: dict[tuple[str, str], int]) -> None:
        """So many seconds of traffic, in requests a second, and of all the replay that the budget allows meanwhile."""
        self.arriving = arriving
        end = self.now + seconds
        while self.now < end:
            rest = self.worker.turn(0)
            self.pass_by(rest if rest > 0 or self.queue.depth()[0] else 0.02)

    def _arrive(self, key: tuple[str, str]) -> None:
        if self.samplers.of(key).request(key[0], None).kept:
            item = Captured(*key, self.body, None, None, None, int(self.now * 1000))
            self.queue.offer(item, len(self.body) + 512, key)

    def replayed(self, key: tuple[str, str]) -> int:
        return self.worker.meters.read(key).replayed

    def windows(self) -> set[str]:
        bodies = [wire.decode(item.payload) for item in self.outbox.pending(1000)]
        return {one.model for one in bodies if isinstance(one.body, wire.Window)}


@pytest.mark.parametrize(
    ("arriving", "cost"),
    [
        pytest.param({BUSY: 100, QUIET: 2}, {BUSY: 0.02, QUIET: 0.02}, id="fifty times the traffic"),
        pytest.param({BUSY: 2, QUIET: 2}, {BUSY: 3.0, QUIET: 0.02}, id="150 times as slow"),
    ],
)
def test_both_models_are_replayed_and_the_duty_cycle_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arriving: dict[tuple[str, str], int], cost: Costs
) -> None:
    pod = Pod(tmp_path, cost, monkeypatch)
    seconds = 150
    pod.run(seconds, arriving)
    elapsed = pod.now - pod.begin
    assert pod.duty.used("replay") <= SHARE * elapsed + SHARE + max(cost.values())
    assert pod.duty.used("replay") >= 0.8 * SHARE * elapsed
    wanted = pod.samplers.of(QUIET).seen
    assert wanted >= 2 * seconds
    assert pod.replayed(QUIET) >= 0.9 * wanted, "all that came, but for what still waits"
    assert pod.samplers.of(QUIET).rate == 1.0
    assert pod.replayed(BUSY) * cost[BUSY] > 0.5 * SHARE * elapsed, "the other has all the rest"
    assert pod.windows() == {"busy", "quiet"}


def test_a_flood_pushes_out_its_own_requests_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(tmp_path, {BUSY: 0.5, QUIET: 0.5}, monkeypatch, queue_bytes=20_000)
    pod.run(20, {BUSY: 200, QUIET: 1})
    assert pod.queue.refused_of(BUSY) > 20
    assert pod.queue.refused_of(QUIET) == 0


def test_a_turn_of_a_slow_model_is_cut_while_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(tmp_path, {BUSY: 0.25, QUIET: 0.01}, monkeypatch)
    for _ in range(40):
        pod._arrive(BUSY)
    for _ in range(8):
        pod._arrive(QUIET)
    longest, begin = 0.0, 0.0
    while pod.queue.depth()[0]:
        begin = pod.now
        rest = pod.worker.turn(0)
        if pod.queue.depth()[0] and pod.replayed(QUIET) < 8:
            longest = max(longest, pod.now - begin)
        pod.now += rest
    assert longest <= 0.5, "two requests of a quarter of a second, and not a batch of eight"


def test_windows_are_sent_while_replay_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod(tmp_path, {BUSY: 5.0}, monkeypatch)
    pod._arrive(BUSY)
    pod.worker.turn(0)
    assert pod.windows() == set()
    pod.duty.charge("replay", BUSY, 30.0)
    pod.now = 60_061.0
    assert pod.worker.turn(0) > 0, "it rests for long"
    assert pod.windows() == {"busy"}
