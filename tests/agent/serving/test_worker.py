"""The replay loop: bad requests are counted by reason and cost the good ones nothing."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np
import onnx
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import wire
from agent.capture.settings import CaptureSettings
from agent.delivery.drops import ProbeDrops
from agent.delivery.outbox import Outbox
from agent.delivery.sender import Sender
from agent.delivery.small_groups import MinGroup
from agent.delivery.windowing import Accumulator
from agent.intake.queue import ByteQueue, Captured
from agent.intake.unpacking import Limits
from agent.metrics import AgentMetrics
from agent.rates.governor import Budgets
from agent.replay import Device
from agent.serving.models import Models
from agent.serving.worker import Worker, WorkerSettings
from tests.agent.models import Builder, small_cnn
from tests.agent.serving.test_models import put


def request(image: np.ndarray, version: str = "1", model: str = "digits") -> Captured:
    tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
    return Captured(model, version, orjson.dumps({"inputs": [tensor]}), None, None, None, 1500)


def replay(
    tmp_path: Path,
    model: onnx.ModelProto,
    items: list[Captured],
    max_message_bytes: int = 1 << 20,
    budgets: Budgets | None = None,
    min_group: int = 1,
    newer: onnx.ModelProto | None = None,
    others: Mapping[str, onnx.ModelProto] | None = None,
    rows_per_request: int = 1,
) -> tuple[list[wire.Envelope], str]:
    metrics = AgentMetrics()
    queue: ByteQueue[Captured] = ByteQueue(1 << 24, 1000)
    outbox = Outbox(tmp_path / "outbox.db", 1 << 24)
    drops = ProbeDrops(metrics)
    group = MinGroup(min_group)
    sender = Sender(outbox, "pod-1", max_message_bytes, on_drop=drops, group=group, metrics=metrics)
    put(tmp_path / "repo", "1", model)
    for name, other in (others or {}).items():
        put(tmp_path / "repo", "1", other, name)
    models = Models(tmp_path / "repo", metrics, sender.deployment, CaptureSettings(Device(1, 1 << 30), max_batch=8))
    models.refresh()
    for item in items:
        assert queue.offer(item, len(item.body), item.key)
    stop = threading.Event()
    bounds = WorkerSettings(8, budgets or Budgets(1.0), Limits(), rows_per_request=rows_per_request)
    worker = Worker(bounds, models, queue, Accumulator(1000, 0, on_drop=drops), sender, metrics)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 10
    while queue.depth()[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    if newer is not None:
        withheld = metrics.withheld_requests_total.labels("digits", "version_gone")._value
        time.sleep(0.5)  # the worker looks at its windows meanwhile
        assert withheld.get() == 0
        put(tmp_path / "repo", "2", newer)
        models.refresh()
        models.refresh()
        while not withheld.get() and time.monotonic() < deadline:
            time.sleep(0.01)
    stop.set()
    thread.join(10)
    sent = [wire.decode(item.payload) for item in outbox.pending(100)]
    outbox.close()
    return sent, metrics.render().decode()


def counts(sent: list[wire.Envelope]) -> dict[str, int]:
    total: dict[str, int] = {}
    for envelope in sent:
        if isinstance(envelope.body, wire.Window):
            for item in envelope.body.probes:
                total[item.probe.name] = total.get(item.probe.name, 0) + item.summary.n
    return total


def test_requests_become_one_window_after_the_deployment(tmp_path: Path) -> None:
    items = [request(np.ones((1, 1, 8, 8), np.float32)) for _ in range(20)] + [request(np.ones((3, 1, 8, 8)))]
    sent, _ = replay(tmp_path, small_cnn(), items)
    assert isinstance(sent[0].body, wire.Deployment)
    assert counts(sent) == dict.fromkeys(["image", "relu1", "relu2", "relu3", "fc2_out"], 21)
    assert [envelope.seq for envelope in sent] == sorted({envelope.seq for envelope in sent})


def test_bad_requests_are_counted_by_reason(tmp_path: Path) -> None:
    bad = Captured("digits", "1", b"{", None, None, None, 1500)
    former = request(np.ones((1, 1, 8, 8)), version="0")
    items = [request(np.ones((1, 1, 8, 8))), bad, request(np.ones((1, 1, 9, 8))), request(np.ones((1, 1, 8))), former]
    sent, metrics = replay(tmp_path, small_cnn(), items)
    assert counts(sent)["relu1"] == 1
    assert 'rejected_total{model="digits",reason="bad_json"} 1.0' in metrics
    assert 'rejected_total{model="digits",reason="shape"} 2.0' in metrics
    assert 'dropped_total{reason="model_gone"} 1.0' in metrics


def test_a_poisoned_request_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    """Its index lies beyond the table: the type and the shape are right, and the run of the whole batch fails."""
    b = Builder()
    table = b.weight("table", 4, 6)
    x = b.node("Relu", [b.node("Gather", [table, "ids"], "look_up")], "relu1")
    graph = b.model({"ids": ["N"]}, {x: 2}).graph
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)

    def look_up(*ids: int) -> Captured:
        tensor = {"name": "ids", "datatype": "INT64", "shape": [len(ids)], "data": list(ids)}
        return Captured("digits", "1", orjson.dumps({"inputs": [tensor]}), None, None, None, 1500)

    sent, metrics = replay(
        tmp_path, model, [look_up(i % 4) for i in range(5)] + [look_up(99), look_up(77, 77), look_up(2)]
    )
    assert counts(sent)["relu1"] == 6
    assert 'rejected_total{model="digits",reason="replay_failed"} 2.0' in metrics
    assert 'replayed_total{model="digits",version="1"} 6.0' in metrics


def test_fewer_requests_than_the_group_never_leave(tmp_path: Path) -> None:
    """One request's window would be that request: mean, smallest and largest are its own values."""
    items = [request(np.full((1, 1, 8, 8), 1.5)) for _ in range(19)]
    sent, metrics = replay(tmp_path, small_cnn(), items, min_group=20)
    assert [type(envelope.body) for envelope in sent] == [wire.Deployment]
    assert 'withheld_requests_total{model="digits",reason="stopping"} 95.0' in metrics, "19 of each of five probes"


def test_small_batches_add_up_to_a_group(tmp_path: Path) -> None:
    items = [request(np.full((1, 1, 8, 8), 1.5)) for _ in range(20)]
    sent, metrics = replay(tmp_path, small_cnn(), items, min_group=20)
    assert counts(sent) == dict.fromkeys(["image", "relu1", "relu2", "relu3", "fc2_out"], 20)
    assert 'withheld_requests_total{model="digits",reason="stopping"} 0.0' in metrics


def test_what_is_too_small_goes_with_its_version(tmp_path: Path) -> None:
    items = [request(np.ones((1, 1, 8, 8))) for _ in range(5)]
    _, metrics = replay(tmp_path, small_cnn(), items, min_group=20, newer=small_cnn())
    assert 'withheld_requests_total{model="digits",reason="version_gone"} 25.0' in metrics


def test_a_fixed_batch_is_run_as_it_came_and_is_one_request(tmp_path: Path) -> None:
    b = Builder()
    x = b.node("Relu", [b.conv("image", "conv1", 1, 4)], "relu1")
    model = b.model({"image": [4, 1, 8, 8]}, {x: 4})
    sent, metrics = replay(tmp_path, model, [request(np.ones((4, 1, 8, 8))) for _ in range(2)])
    assert counts(sent)["relu1"] == 2
    assert 'replayed_total{model="digits",version="1"} 2.0' in metrics


def test_a_limit_of_requests_per_second_is_kept(tmp_path: Path) -> None:
    items = [request(np.ones((1, 1, 8, 8), np.float32)) for _ in range(8)]
    begin = time.monotonic()
    sent, _ = replay(tmp_path, small_cnn(), items, budgets=Budgets(1.0, requests_per_second=4))
    assert 0.9 < time.monotonic() - begin < 5, "four at once, then a rest"
    assert counts(sent)["relu1"] == 8


def test_a_wide_window_is_split_below_the_message_limit(tmp_path: Path) -> None:
    items = [request(np.random.default_rng(i).random((1, 1, 8, 8))) for i in range(50)]
    sent, _ = replay(tmp_path, small_cnn(), items, max_message_bytes=1500)
    windows = [envelope for envelope in sent if isinstance(envelope.body, wire.Window)]
    assert len(windows) > 1
    assert counts(sent) == dict.fromkeys(["image", "relu1", "relu2", "relu3", "fc2_out"], 50)
    assert len({envelope.seq for envelope in sent}) == len(sent)


def test_a_request_of_many_rows_is_one_request(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    items = [request(np.repeat(rng.random((1, 1, 8, 8), np.float32), 32, axis=0)) for _ in range(12)]
    sent, metrics = replay(tmp_path, small_cnn(), items)
    assert counts(sent) == dict.fromkeys(["image", "relu1", "relu2", "relu3", "fc2_out"], 12)
    assert 'replayed_total{model="digits",version="1"} 12.0' in metrics


def test_more_rows_of_a_request_count_where_that_is_asked_for(tmp_path: Path) -> None:
    items = [request(np.random.default_rng(i).random((rows, 1, 8, 8), np.float32)) for i, rows in enumerate((9, 1, 4))]
    sent, _ = replay(tmp_path, small_cnn(), items, rows_per_request=4)
    assert counts(sent)["relu1"] == 9


def test_a_tensor_without_requests_is_run_whole_and_is_one_request(tmp_path: Path) -> None:
    """A picture (3, 8, 8): nothing tells it from a batch of three, and a third of it would be another picture."""
    b = Builder()
    x = b.node("Relu", [b.node("Sub", ["image", b.node("ReduceMean", ["image"], "mean", keepdims=1)], "sub")], "relu1")
    model = b.model({"image": [3, 8, 8]}, {x: 3})
    image = np.stack([np.full((8, 8), value, np.float32) for value in (0.0, 3.0, 9.0)])
    sent, metrics = replay(tmp_path, model, [request(image) for _ in range(40)])
    assert counts(sent)["relu1"] == 40
    windows = [e.body for e in sent if isinstance(e.body, wire.Window)]
    largest = [item.summary.highest_max.max() for body in windows for item in body.probes if item.probe.name == "relu1"]
    assert 5 <= max(largest) < 5 * 1.045, "9 less the mean of all three planes, up to the end of its bucket"
    assert "rejected_total{" not in metrics


@given(st.lists(st.one_of(st.binary(max_size=60), st.integers(0, 9)), min_size=1, max_size=25), st.randoms())
@settings(max_examples=25, deadline=None)
def test_hostile_bodies_never_end_the_loop_nor_cost_other_requests(bodies: list[bytes | int], rng: Random) -> None:
    """Noise, and good bodies (numbers) of which a byte was changed, cut or doubled."""
    good = request(np.ones((2, 1, 8, 8), np.float32)).body
    items, intact = [], 0
    for part in bodies:
        body = part if isinstance(part, bytes) else good
        if isinstance(part, int) and part > 2:
            at = rng.randrange(len(good))
            body = (
                good[:at]
                + rng.choice([b"", b"\xff", b"[", b'"', b"-", b"9e9", b"null", good[at : at + 40]])
                + good[at + 1 :]
            )
        intact += body == good
        length = rng.choice([None, None, None, 0, 5, len(body), 1 << 40])
        if body == good and length is not None:
            intact -= 1
        items.append(Captured("digits", "1", body, length, rng.choice([None, None, "gzip"]), None, 1500))
        if body == good and length is None and items[-1].encoding is not None:
            intact -= 1
    with tempfile.TemporaryDirectory() as folder:
        sent, metrics = replay(Path(folder), small_cnn(), [*items, request(np.ones((1, 1, 8, 8)))])
    replayed = counts(sent)["relu1"]
    refused = sum(float(line.split()[-1]) for line in metrics.splitlines() if "agent_rejected_total{" in line)
    assert intact + 1 <= replayed
    assert replayed + refused == len(items) + 1
    assert 'dropped_total{reason="internal"} 0.0' in metrics
    assert 'rejected_total{model="digits",reason="internal"}' not in metrics
