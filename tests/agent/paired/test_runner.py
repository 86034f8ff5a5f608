"""The paired loop as the agent runs it: what is chosen, joined, compared, sent, dropped and counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import orjson
import pytest
from structlog.testing import capture_logs

from agent import wire
from agent.budget.duty import Duty, DutyLimits
from agent.budget.owner import Budget, BudgetLimits
from agent.delivery.outbox import Outbox
from agent.delivery.sender import Sender
from agent.delivery.small_groups import MinGroup
from agent.intake.queue import Captured
from agent.intake.tensors import TensorSpec
from agent.metrics import PAIRED_DROP_REASONS, AgentMetrics
from agent.paired import runner
from agent.paired.pairings import Pairings
from agent.paired.runner import Paired
from agent.paired.windows import ComparisonWindows, ServedVersion
from agent.rates.trickle import Trickle
from agent.replay import Device, FullSession
from tests.agent.comparisons import PROBES, comparison, probe_comparison
from tests.agent.models import Builder, small_cnn
from tests.agent.paired.builders import LOGITS, bit_flipped, by_name, images, permuted, recurrent, serve, settings


class Agent:
    """The paired loop with a served model; `after` runs it until it has nothing to do."""

    def __init__(self, tmp_path: Path, model: onnx.ModelProto, provider: str = "CPUExecutionProvider", **changed: Any):
        outputs, batch = changed.pop("outputs", [LOGITS]), changed.pop("batch_size", None)
        path = tmp_path / "repo" / "digits" / "2" / "model.onnx"
        self.served = serve(path, model, provider=provider, batch_size=batch, outputs=outputs)
        self.metrics = AgentMetrics()
        self.outbox = Outbox(tmp_path / "outbox.db", 1 << 24)
        self.now = 100.0
        group = MinGroup(changed.pop("min_group", 1))
        size = changed.pop("max_message_bytes", 1 << 20)
        sender = Sender(self.outbox, "pod-1", size, group=group, metrics=self.metrics)
        windows = ComparisonWindows(60_000, 0)
        self.paired = Paired(settings(**changed), 1.0, windows, sender, self.metrics, lambda: 70_000, lambda: self.now)

    def put_reference(self, model: onnx.ModelProto | bytes) -> None:
        path = self.served.entry.path.with_name("reference.onnx")
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())

    def refresh(self) -> None:
        self.paired.refresh({self.served.entry.key: self.served})

    def offer(
        self, pair: int | None = None, rows: int = 1, seed: int = 0, arrived_ms: int = 65_000, draw: float = 0.0
    ) -> None:
        item = Captured("digits", "2", b"%d" % seed, None, None, pair, arrived_ms, draw)
        self.paired.intake.offer(self.served, item, {"image": images(rows, seed)})

    def respond(self, pair: int, body: bytes, draw: float = 0.0) -> None:
        self.paired.intake.offer_response(Captured("digits", "2", body, None, None, pair, 65_100, draw))

    def work(self, done: Callable[[], bool]) -> list[wire.Comparison]:
        """Runs the loop until ``done``, stops it, and returns what it sent."""
        stop = threading.Event()
        thread = threading.Thread(target=self.paired.run, args=(stop,))
        thread.start()
        deadline = time.monotonic() + 10
        while not done() and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        assert done()
        envelopes = [wire.decode(item.payload) for item in self.outbox.pending(100)]
        assert {(envelope.model, envelope.version) for envelope in envelopes} <= {("digits", "2")}
        return [envelope.body for envelope in envelopes if isinstance(envelope.body, wire.Comparison)]

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"reluscope_agent_{name}", labels) or 0.0

    def compared(self, kind: str) -> float:
        return self.value("paired_requests_total", model="digits", version="2", kind=kind)

    def failed(self, kind: str, reason: str) -> float:
        return self.value("paired_failed_total", model="digits", kind=kind, reason=reason)

    def dropped(self, reason: str) -> float:
        assert reason in PAIRED_DROP_REASONS
        return self.value("paired_dropped_total", reason=reason)


def answer(model: onnx.ModelProto, inputs: np.ndarray, **changes: object) -> bytes:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = session.run(None, {"image": inputs})[0]
    output = {"name": "fc2_out", "datatype": "FP32", "shape": list(scores.shape), "data": scores.ravel().tolist()}
    return orjson.dumps({"model_name": "digits", "model_version": "2", "outputs": [output], **changes})


def test_requests_are_compared_with_the_reference_and_summed_per_window(tmp_path: Path) -> None:
    agent = Agent(tmp_path, permuted(small_cnn()))
    agent.put_reference(small_cnn())
    agent.refresh()
    for seed in range(5):
        agent.offer(rows=2, seed=seed)
    agent.offer(seed=9, arrived_ms=125_000)
    first, second = agent.work(lambda: agent.compared("reference_model") == 6)
    assert (first.start_ms, first.end_ms, first.n) == (60_000, 120_000, 5)
    assert (second.start_ms, second.end_ms, second.n) == (120_000, 180_000, 1)
    assert (first.kind, first.baseline) == ("reference_model", "reference.onnx")
    assert (first.top1_n, first.top1_agree) == (5, 5)
    assert by_name(first)["relu1"].n == 5
    assert wire.cosine(by_name(first)["relu1"]) < 0.95


def test_few_compared_requests_wait_for_more_and_are_withheld_in_the_end(tmp_path: Path) -> None:
    agent = Agent(tmp_path, permuted(small_cnn()), min_group=20)
    agent.put_reference(small_cnn())
    agent.refresh()
    for place, at in enumerate([65_000] * 12 + [125_000] * 12 + [185_000] * 5):
        agent.offer(seed=place, arrived_ms=at)
    [sent] = agent.work(lambda: agent.compared("reference_model") == 29)
    assert (sent.start_ms, sent.n, by_name(sent)["relu1"].n) == (120_000, 24, 24)
    withheld = agent.value("withheld_requests_total", model="digits", reason="stopping")
    assert withheld == 5 * (1 + len(sent.probes))


def test_comparisons_of_a_version_that_is_gone_are_withheld(tmp_path: Path) -> None:
    agent = Agent(tmp_path, permuted(small_cnn()), min_group=20)
    agent.put_reference(small_cnn())
    agent.refresh()
    for seed in range(3):
        agent.offer(seed=seed, arrived_ms=1_000)

    def gone() -> bool:
        if agent.compared("reference_model") == 3:
            agent.paired.refresh({})
        return agent.value("withheld_requests_total", model="digits", reason="version_gone") > 0

    assert agent.work(gone) == []


def test_without_a_baseline_nothing_is_queued(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.refresh()
    agent.offer()
    assert agent.value("paired_queue_bytes") == agent.value("paired_join_bytes") == 0
    assert agent.work(lambda: True) == []


def test_the_cpu_checks_another_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FullSession, "provider", "CUDAExecutionProvider")
    agent = Agent(tmp_path, small_cnn(), provider="CUDAExecutionProvider")
    agent.refresh()
    agent.offer(rows=3)
    (got,) = agent.work(lambda: agent.compared("cpu_provider") == 1)
    assert (got.kind, got.baseline, got.provider) == ("cpu_provider", "CPUExecutionProvider", "CUDAExecutionProvider")
    assert got.mismatched == agent.value("paired_mismatched_total", model="digits", version="2", kind="cpu_provider")


def test_the_cpu_is_not_compared_with_itself(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn(), provider="CUDAExecutionProvider")
    agent.refresh()
    agent.offer()
    assert agent.work(lambda: agent.failed("cpu_provider", "run_failed") == 1) == []


@pytest.mark.parametrize("response_first", [False, True])
def test_a_response_that_the_model_on_disk_would_not_give(tmp_path: Path, response_first: bool) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.refresh()
    good = answer(small_cnn(), images(2, seed=1))
    bad = answer(bit_flipped(small_cnn(), "fc1_w", 29), images(2, seed=2))
    if response_first:
        agent.respond(1, good)
        agent.respond(2, bad)
    agent.offer(1, rows=2, seed=1)
    agent.offer(2, rows=2, seed=2)
    if not response_first:
        agent.respond(1, good)
        agent.respond(2, bad)
    (got,) = agent.work(lambda: agent.compared("served_response") == 2)
    assert (got.kind, got.baseline, got.baseline_digest) == ("served_response", "response", "")
    assert (got.n, got.mismatched) == (2, 1)
    assert [item.probe.name for item in got.probes] == ["fc2_out"]
    assert agent.value("paired_mismatched_total", model="digits", version="2", kind="served_response") == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "bad_response"),
        (answer(small_cnn(), images(2), model_version="1"), "other_version"),
        (answer(small_cnn(), images(3)), "bad_response"),
        (answer(small_cnn(), images(2), outputs=[{"name": "q"}]), "bad_response"),
    ],
)
def test_a_response_that_does_not_fit_is_counted(tmp_path: Path, body: bytes, reason: str) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.refresh()
    agent.respond(1, body)
    agent.offer(1, rows=2)
    assert agent.work(lambda: agent.failed("served_response", reason) == 1) == []


@pytest.mark.parametrize(("rows", "shape"), [(3, [7, 3, 5]), (1, [7, 1, 5])])
def test_a_response_with_time_first(tmp_path: Path, rows: int, shape: list[int]) -> None:
    model = recurrent(["T", "N", 3], [1, "N", 5])
    agent = Agent(tmp_path, model, outputs=[TensorSpec("relu_out", "FP32", (-1, -1, 5))])
    agent.refresh()
    random = np.random.default_rng(0)
    inputs = {
        "x": random.normal(size=(7, rows, 3)).astype("f4"),
        "state": random.normal(size=(1, rows, 5)).astype("f4"),
    }
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    right = session.run(["relu_out"], inputs)[0]
    assert list(right.shape) == shape
    wrong = right.copy()
    wrong += 1
    for name, values in ((1, right), (2, wrong)):
        output = {"name": "relu_out", "datatype": "FP32", "shape": shape, "data": values.ravel().tolist()}
        agent.respond(name, orjson.dumps({"model_name": "digits", "outputs": [output]}))
        agent.paired.intake.offer(agent.served, Captured("digits", "2", b"", None, None, name, 65_000), inputs)
    (got,) = agent.work(lambda: agent.compared("served_response") == 2)
    assert (got.n, got.mismatched) == (2, 1)
    assert [(item.probe.name, item.n, item.elements) for item in got.probes] == [("relu", 2, 2 * right.size // rows)]


def four_at_a_time() -> onnx.ModelProto:
    """`small_cnn` that takes batches of four and no others."""
    model = small_cnn()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 4
    return model


def test_of_a_fixed_batch_one_row_is_compared(tmp_path: Path) -> None:
    """Each side runs the batch as it came, and the response's row is that of the request's row."""
    agent = Agent(tmp_path, four_at_a_time(), batch_size=4, outputs=[TensorSpec("fc2_out", "FP32", (4, 3))])
    agent.put_reference(four_at_a_time())
    agent.refresh()
    for seed in range(6):
        agent.respond(seed, answer(four_at_a_time(), images(4, seed)))
        agent.offer(seed, rows=4, seed=seed)
    found = agent.work(lambda: agent.compared("served_response") == agent.compared("reference_model") == 6)
    by_kind = {item.kind: item for item in found}
    assert {kind: (item.n, item.mismatched) for kind, item in by_kind.items()} == {
        "served_response": (6, 0),
        "reference_model": (6, 0),
    }
    assert by_name(by_kind["reference_model"])["relu1"].elements == 6 * 4 * 64
    assert by_name(by_kind["served_response"])["fc2_out"].elements == 6 * 3


def test_a_response_to_one_request_may_have_any_layout(tmp_path: Path) -> None:
    b = Builder()
    rows = b.node("Reshape", ["image", "rows"], "flatten")
    b.weights.append(onnx.numpy_helper.from_array(np.array([-1, 8], np.int64), "rows"))
    model = b.model({"image": ["N", 1, 8, 8]}, {b.node("Relu", [b.gemm(rows, "up", 8, 3)], "fc2"): 2})
    agent = Agent(tmp_path, model)
    agent.refresh()
    agent.respond(1, answer(model, images(1)))
    agent.offer(1)
    (got,) = agent.work(lambda: agent.compared("served_response") == 1)
    assert [(item.n, item.elements, item.mismatched) for item in got.probes] == [(1, 24, 0)]


def test_what_is_not_to_be_paired_does_not_wait(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.refresh()
    agent.offer(None)
    assert agent.value("paired_join_bytes") == 0
    agent.respond(7, b"{}")
    agent.offer(1)
    assert agent.value("paired_join_bytes") > 256
    agent.now += 700
    agent.paired.intake.take(0)
    assert agent.value("paired_join_bytes") == 0
    assert agent.dropped("response_missing") == agent.dropped("request_missing") == 1


def test_both_halves_are_chosen_alike(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn(), rate=0.3, per_minute=1000)
    agent.refresh()
    draws = np.random.default_rng(0).random(100).tolist()
    for pair, draw in enumerate(draws):
        agent.respond(pair, b"{}", draw)
    waiting = agent.value("paired_join_bytes")
    assert 10 * 514 < waiting < 60 * 514
    for pair, draw in enumerate(draws):
        agent.offer(pair, draw=draw)
    assert agent.value("paired_join_bytes") == 0, "every response had its request"
    tasks = 0
    while agent.paired.intake.take(0) is not None:
        tasks += 1
    assert tasks + agent.dropped("queue_full") == waiting / 514


class Clock(threading.Event):
    """Time and the sign to stop in one: waiting for the sign passes the time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert timeout <= 5, "windows would be sent late"
        self.now += timeout
        return self.is_set()


def test_the_duty_cycle_is_kept_however_long_a_comparison_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(tmp_path, permuted(small_cnn()), duty_cycle=0.01)
    agent.put_reference(small_cnn())
    agent.refresh()
    clock, begun = Clock(), []
    monkeypatch.setattr(runner, "time", clock)
    agent.paired._duty = Duty(DutyLimits(1.0, paired=0.01), clock.monotonic)

    def process(_: object) -> None:
        begun.append(clock.now)
        clock.now += 3
        if len(begun) == 2:
            clock.set()

    monkeypatch.setattr(agent.paired, "_process", process)
    agent.offer(seed=1)
    agent.offer(seed=2)
    agent.paired.run(clock)
    assert begun == pytest.approx([0, 299]), "three seconds are a hundredth of 300, of which one was saved up"


def test_a_rest_ends_when_the_agent_stops(tmp_path: Path) -> None:
    agent = Agent(tmp_path, permuted(small_cnn()), duty_cycle=0.001)
    agent.put_reference(small_cnn())
    agent.refresh()
    agent.offer()
    begin = time.monotonic()
    agent.work(lambda: agent.compared("reference_model") == 1)
    assert time.monotonic() - begin < 8


def test_the_minute_and_the_queue_are_bounded(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn(), per_minute=3, queue_bytes=2000)
    agent.put_reference(small_cnn())
    agent.refresh()
    for seed in range(5):
        agent.offer(seed=seed)
    assert agent.dropped("rate") == 2
    assert agent.dropped("queue_full") == 1
    agent.now += 20
    agent.paired.intake.take(0)
    agent.offer(seed=6)
    assert agent.dropped("rate") == 2


def test_the_trickle_is_a_share_of_the_sample_and_nested_in_it() -> None:
    half, tenth = Trickle(0.5, 0.4, 60), Trickle(0.5, 0.1, 60)
    draws = np.random.default_rng(0).random(5000).tolist()
    assert 0.17 < np.mean([half.keep(draw) for draw in draws]) < 0.23
    assert all(half.keep(draw) for draw in draws if tenth.keep(draw))
    assert all(draw < 0.5 for draw in draws if half.keep(draw))
    assert not any(Trickle(0.5, 0.0, 60).keep(draw) for draw in draws)


def test_one_request_larger_than_the_minute_uses_it_up() -> None:
    now = [0.0]
    trickle = Trickle(1.0, 1.0, 10, lambda: now[0])
    assert trickle.take(1000)
    assert not trickle.take(1)
    now[0] += 6.5
    assert trickle.take(1)


def test_a_broken_reference_is_logged_once_and_counted_for_every_request(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.put_reference(b"no model")
    agent.refresh()
    with capture_logs() as logs:
        for seed in range(3):
            agent.offer(seed=seed)
        agent.work(lambda: agent.failed("reference_model", "baseline_unusable") == 3)
    assert len([entry for entry in logs if entry["event"] == "paired.unusable"]) == 1


def test_a_new_reference_takes_the_place_of_the_old(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.put_reference(b"no model")
    agent.refresh()
    agent.offer(seed=1)
    stop = threading.Event()
    thread = threading.Thread(target=agent.paired.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 10
    while agent.failed("reference_model", "baseline_unusable") < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    agent.put_reference(small_cnn())
    agent.refresh()
    agent.offer(seed=2)
    while agent.compared("reference_model") < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join(10)
    assert agent.compared("reference_model") == 1


def test_a_busy_model_does_not_use_up_the_minute_of_the_others() -> None:
    now = [0.0]
    trickle = Trickle(1.0, 1.0, 60, lambda: now[0])
    passed = {"busy": 0, "quiet": 0}
    for second in range(600):
        now[0] = float(second)
        passed["busy"] += sum(trickle.take(1, ("busy", "1")) for _ in range(50))
        if second % 4 == 0:
            passed["quiet"] += trickle.take(1, ("quiet", "1"))
    assert passed["quiet"] == 150
    assert 400 <= passed["busy"] <= 660 - 150


def test_tasks_of_two_models_take_turns_by_time(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.put_reference(small_cnn())
    other = replace(agent.served, entry=replace(agent.served.entry, model="other"))
    agent.paired.refresh({one.entry.key: one for one in (agent.served, other)})
    for seed in range(4):
        agent.offer(seed=seed)
    item = Captured("other", "2", b"x", None, None, None, 65_000)
    agent.paired.intake.offer(other, item, {"image": images(1)})
    order = []
    for _ in range(5):
        task = agent.paired.intake.take(0)
        assert task is not None
        order.append(task.served.entry.model)
        agent.paired.intake.done(task.served.entry.key, 1.0)
    assert order == ["digits", "other", "digits", "digits", "digits"]
    assert agent.value("paired_queue_bytes") == 0


def test_sessions_of_what_was_compared_longest_ago_make_room(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.put_reference(small_cnn())
    size = agent.served.entry.path.stat().st_size
    budget = Budget(BudgetLimits(DutyLimits(1.0), 1 << 30, size * 3 * 4 // 3), agent.metrics)
    bounds = settings(device=Device(1, memory=budget.sessions))
    agent.paired._pairings = Pairings(bounds)
    other = replace(agent.served, entry=replace(agent.served.entry, version="3"))
    agent.paired.refresh({one.entry.key: one for one in (agent.served, other)})
    for round_ in range(2):
        for served in (agent.served, other):
            item = Captured("digits", served.entry.version, b"%d" % round_, None, None, None, 65_000)
            agent.paired.intake.offer(served, item, {"image": images(1, round_)})
    for _ in range(4):
        task = agent.paired.intake.take(0)
        assert task is not None
        agent.paired._account(task)
    labels = {"model": "digits", "kind": "reference_model"}
    compared = [agent.value("paired_requests_total", version=version, **labels) for version in ("2", "3")]
    assert compared == [2, 2]
    assert agent.value("memory_refused_total", memory="ram", owner="paired") > 0, "room had to be made"
    assert budget.ram.used("paired") <= 3 * size


def test_a_comparison_that_memory_has_no_room_for_is_counted(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.put_reference(small_cnn())
    budget = Budget(BudgetLimits(DutyLimits(1.0), 1 << 30, 4096), agent.metrics)
    agent.paired._pairings = Pairings(settings(device=Device(1, memory=budget.sessions)))
    agent.refresh()
    agent.offer()
    agent.work(lambda: agent.failed("reference_model", "no_memory") == 1)
    assert budget.ram.used("paired") == 0


def test_a_model_that_was_replaced_while_its_request_waited(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.put_reference(small_cnn())
    agent.refresh()
    agent.offer()
    agent.paired.refresh({agent.served.entry.key: replace(agent.served, digest="other")})
    assert agent.work(lambda: agent.dropped("model_gone") == 1) == []


def test_unmatched_probes_are_logged_and_counted(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    other = small_cnn()
    for node in other.graph.node:
        if node.name == "relu2":
            node.name, node.output[0] = "renamed", "renamed_out"
        if node.name == "pool":
            node.input[0] = "renamed_out"
    agent.put_reference(other)
    agent.refresh()
    agent.offer(seed=1)
    agent.offer(seed=2)
    with capture_logs() as logs:
        (got,) = agent.work(lambda: agent.compared("reference_model") == 2)
    assert set(by_name(got)) == {"relu1", "relu3", "fc2_out"}
    (left_out,) = [entry for entry in logs if entry["event"] == "paired.left_out"]
    assert left_out["probes"] == ["relu2: the baseline has no probe or tensor of its name"]
    assert agent.value("paired_unmatched_probes", model="digits", version="2", kind="reference_model") == 1


def test_once_all_probes_are_compared_again_nothing_is_warned_of(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    source = ServedVersion("digits", "2", "d")
    with capture_logs() as logs:
        for left_out in ({}, {"relu2": "why"}, {"relu2": "why"}, {}, {}):
            agent.paired._note_left_out(source, "reference_model", left_out)
    assert [(entry["event"], entry["log_level"], entry.get("probes")) for entry in logs] == [
        ("paired.left_out", "warning", ["relu2: why"]),
        ("paired.all_compared", "info", None),
    ]
    assert agent.value("paired_unmatched_probes", model="digits", version="2", kind="reference_model") == 0


def test_an_activation_beyond_the_limit_is_logged_and_counted(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn(), fetch_bytes=2500)
    agent.put_reference(small_cnn())
    agent.refresh()
    agent.offer()
    with capture_logs() as logs:
        agent.work(lambda: agent.compared("reference_model") == 1)
    (left_out,) = [entry for entry in logs if entry["event"] == "paired.left_out"]
    assert left_out["probes"] == ["relu2: larger than --paired-fetch-mib"]
    assert agent.value("paired_unmatched_probes", model="digits", version="2", kind="reference_model") == 1


def test_nothing_that_goes_wrong_reaches_the_other_loops(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn())
    agent.put_reference(small_cnn())
    agent.refresh()
    broken: Any = None
    item = Captured("digits", "2", b"", None, None, None, 0)
    agent.paired.intake.offer(agent.served, item, broken)
    assert agent.value("paired_failed_total", model="digits", kind="", reason="internal") == 1
    agent.paired.intake.offer_response(replace(item, pair=1, body=broken))
    assert agent.failed("served_response", "internal") == 1


def test_a_wide_comparison_is_split_below_the_message_limit_and_adds_up(tmp_path: Path) -> None:
    agent = Agent(tmp_path, small_cnn(), max_message_bytes=700)
    body = comparison(probes=tuple(probe_comparison(probe) for probe in PROBES))
    Sender(agent.outbox, "pod-1", 400, group=MinGroup(1)).comparison("digits", "2", "ab" * 32, body)
    parts = agent.work(lambda: True)
    assert len(parts) == 3
    assert [part.n for part in parts] == [4, 0, 0]
    whole = wire.merge(wire.merge(parts[0], parts[1]), parts[2])
    assert (whole.n, whole.top1_agree, [item.probe.name for item in whole.probes]) == (
        4,
        3,
        [probe.name for probe in PROBES],
    )


def test_windows_leave_out_a_probe_whose_channels_change() -> None:
    windows, source = ComparisonWindows(60_000, 0), ServedVersion("digits", "2", "ab")
    none = np.zeros(0, np.int64)
    assert windows.add(source, comparison()) == ()
    narrow = probe_comparison(replace(PROBES[0], channels=None), only_served_active=none, only_baseline_active=none)
    assert windows.add(source, comparison(probes=(narrow, probe_comparison(PROBES[1])))) == ("conv1_relu",)
    ((_, merged),) = windows.close(120_000)
    assert merged.n == 8
    assert {name: item.n for name, item in by_name(merged).items()} == {"conv1_relu": 4, "conv2_relu": 4}
    assert list(windows.drain()) == []


def test_windows_keep_baselines_apart_and_wait_for_their_grace() -> None:
    windows, source = ComparisonWindows(60_000, 1000), ServedVersion("digits", "2", "ab")
    windows.add(source, comparison())
    windows.add(source, comparison(kind="cpu_provider", baseline="CPUExecutionProvider"))
    windows.add(source, comparison())
    assert list(windows.close(120_999)) == []
    closed = list(windows.close(121_000))
    assert [(body.kind, body.n) for _, body in closed] == [("cpu_provider", 4), ("reference_model", 8)]
    with pytest.raises(ValueError, match="no span of time"):
        ComparisonWindows(0, 0)
