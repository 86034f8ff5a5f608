"""Values planted in requests are nowhere outside the pod: not in Kafka, Postgres, logs, metrics, reports or on disk."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import psycopg
import pytest
from kafka import KafkaConsumer, TopicPartition
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from psycopg.rows import dict_row

from agent.wire import reluscope_pb2 as pb
from deploy.local.broker import Broker
from deploy.local.ports import free_port
from deploy.local.postgres import psycopg_url
from deploy.local.process import http_ok, running
from tests.agent.models import Builder
from tests.integration.canaries import WORD, Canaries
from tests.integration.test_whole_line import reluscope, wait_for

FEATURES, TABLE = 4, 6
WINDOW_SECONDS = 1.0


def tabular(shift: float = 0.0) -> onnx.ModelProto:
    """Numbers and a token: Gather, Add, Gemm, Relu, Gemm. Nothing is pooled: what a channel has is one value."""
    b = Builder(seed=5)
    looked_up = b.node("Gather", [b.weight("table", TABLE, FEATURES), "token"], "look_up")
    x = b.node("Add", ["features", looked_up], "join")
    x = b.node("Relu", [b.gemm(x, "fc1", FEATURES, 5)], "relu1")
    model = b.model({"features": ["N", FEATURES], "token": ["N"]}, {b.gemm(x, "scores", 5, 3): 2})
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT32
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(shift), weight.name))
    return model


def with_inner_values(model: onnx.ModelProto) -> ort.InferenceSession:
    """The model with all its activations as outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.insert(0, helper.make_tensor_value_info("relu1_out", TensorProto.FLOAT, ["N", 5]))
    return ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])


@dataclass
class Client:
    """Sends requests and mirrored responses with planted values, and keeps what was answered."""

    url: str
    canaries: Canaries
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=10))
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    answers: list[httpx.Response] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self._model = with_inner_values(tabular())

    def features(self) -> NDArray[np.float32]:
        """One request's; the third is zero in most, the fourth missing in most of some."""
        values = self.rng.lognormal(3, 2, (1, FEATURES)).astype(np.float32)
        values[0, 2] = values[0, 2] if self.sent % 9 == 4 else 0.0
        self.canaries.plant(values)
        return values

    def request(self, *, lost: bool = False, respond: bool = False, binary: bool = False) -> None:
        """A good request; ``lost`` has a feature that is not a number, as most of its neighbours' is."""
        self.sent += 1
        values, token = self.features(), self.sent % TABLE
        if lost:
            values[0, 3] = np.nan
        feed = {"features": values, "token": np.array([token], np.int32)}
        inner, scores = self._model.run(None, feed)
        self.canaries.plant_derived([*inner.ravel(), *scores.ravel()])
        request_id = f"{WORD}-{self.sent}"
        tensor: dict[str, Any] = {"name": "features", "datatype": "FP32", "shape": [1, FEATURES]}
        tokens = {"name": "token", "datatype": "INT32", "shape": [1], "data": [token]}
        if binary or lost:
            tensor["parameters"] = {"binary_data_size": values.nbytes}
            head = json.dumps({"id": request_id, "inputs": [tensor, tokens]}).encode()
            headers = {"Inference-Header-Content-Length": str(len(head))}
            self.post("/infer", head + values.tobytes(), headers, good=True)
        else:
            tensor["data"] = [float(value) for value in values.ravel()]
            self.post("/infer", {"id": request_id, "inputs": [tensor, tokens]}, good=True)
        if respond:
            answer = (scores + self.rng.normal(0, 0.01, scores.shape)).astype(np.float32)
            self.canaries.plant(answer)
            output = {"name": "scores_out", "datatype": "FP32", "shape": [1, 3], "data": answer.ravel().tolist()}
            self.post("/response", {"id": request_id, "model_version": "1", "outputs": [output]}, good=True)

    def post(
        self, path: str, body: bytes | dict[str, Any], headers: dict[str, str] | None = None, *, good: bool = False
    ) -> None:
        """Posts to the model, or to ``path`` where it is a whole one."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = path.removeprefix("!") if path.startswith("!") else f"/v2/models/tabular{path}"
        named = {} if good else {"X-Request-Id": f"{WORD}-header"}
        answer = self.http.post(f"{self.url}{url}", content=data, headers=named | (headers or {}))
        assert not good or answer.status_code == 200, answer.text
        self.answers.append(answer)

    def bad_requests(self) -> None:
        """Every way to be refused in which the request's own words or numbers might be quoted, logged and answered."""
        plant = self.canaries.plant_integer
        good: dict[str, Any] = {
            "name": "features",
            "datatype": "FP32",
            "shape": [1, FEATURES],
            "data": [0.0] * FEATURES,
        }
        token: dict[str, Any] = {"name": "token", "datatype": "INT32", "shape": [1], "data": [0]}
        bad_tokens: list[dict[str, Any]] = [
            {"data": [plant(98_765_432_101)]},
            {"data": [plant(-98_765_432_102)]},
            {"data": [plant(1_987_654_321)]},  # fits, but is beyond the table: onnxruntime refuses it
            {"data": [WORD]},
            {"data": WORD},
            {"datatype": WORD},
            {"datatype": plant(98_765_432_103)},
            {"shape": [plant(98_765_432_104)]},
            {"shape": [1, plant(98_765_432_105)]},
            {"shape": WORD},
            {"name": WORD},
            {"parameters": {"binary_data_size": plant(98_765_432_106)}, "data": None},
            {"parameters": {"shared_memory_region": WORD}},
            {"parameters": WORD},
        ]
        bodies: list[bytes | dict[str, Any]] = []
        for changes in bad_tokens:
            entry = {key: value for key, value in (token | changes).items() if value is not None}
            bodies.append({"id": f"{WORD}-bad", "inputs": [good, entry]})
        bodies += [
            {"id": plant(98_765_432_107), "inputs": [good, token]},
            {"inputs": [good | {"data": [WORD] * FEATURES}, token]},
            {"inputs": [good], WORD: WORD},
            {"inputs": WORD},
            f'{{"inputs": [{WORD}'.encode(),
            f'{{"inputs": {WORD}}}'.encode(),
            f"[{WORD}]".encode(),
            b'{"id": "' + WORD.encode() + b'\xff"}',
        ]
        for body in bodies:
            self.post("/infer", body)
            self.post("/infer", body, {"X-Reluscope-Validate": "1"})
        self.post("/infer", b"{}", {"Content-Encoding": WORD})
        self.post("/infer", gzip.compress(WORD.encode())[:-5] + WORD.encode(), {"Content-Encoding": "gzip"})
        self.post("/infer", b"{}", {"Inference-Header-Content-Length": WORD})
        self.post("/infer", b"{}", {"Inference-Header-Content-Length": str(plant(98_765_432_108))})
        self.post(f"!/v2/models/{WORD}/infer", b"{}")
        self.post(f"!/v2/models/tabular/versions/{WORD}/infer", b"{}")
        events = {"ce-type": "org.kubeflow.serving.inference.request", "ce-id": WORD}
        self.post("!/", b"{}", events | {"ce-inferenceservicename": WORD})
        self.post("!/", b"{}", events | {"ce-type": WORD})
        self.request(respond=True)  # so that responses are waited for
        scores: dict[str, Any] = {"name": "scores_out", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 0.25, 0.125]}
        responses: list[dict[str, Any]] = [
            {"model_version": WORD, "outputs": [scores]},
            {"outputs": [scores | {"name": WORD}]},
            {"outputs": [scores | {"data": [plant(98_765_432_109)] * 3, "datatype": "INT8"}]},
            {"outputs": [scores | {"data": [WORD] * 3}]},
            {"outputs": [scores | {"shape": [plant(98_765_432_110), 3]}]},
            {"error": WORD},
        ]
        for place, response in enumerate(responses):
            request_id = f"{WORD}-answer-{place}"
            self.post("/infer", {"id": request_id, "inputs": [good, token]}, good=True)
            self.post("/response", {"id": request_id, **response})
            time.sleep(0.05)

    def answered(self) -> Iterator[str]:
        """The answers; the protocol gives the client its own id back, which is left out."""
        for answer in self.answers:
            body = answer.json()
            if answer.status_code == 200:
                body.pop("id", None)
            yield json.dumps([body, dict(answer.headers)])


def play(client: Client) -> None:
    """A life of few and many requests, with trouble, that ends in the middle of a window."""
    client.request()  # alone in its window
    time.sleep(2 * WINDOW_SECONDS)
    client.request(binary=True)
    client.request()  # two in theirs
    time.sleep(2 * WINDOW_SECONDS)
    for _ in range(5):  # full windows
        begin = time.monotonic()
        for number in range(30):
            client.request(binary=number % 2 == 0, respond=number % 3 == 0)
        time.sleep(max(0.0, WINDOW_SECONDS - (time.monotonic() - begin)))
    for number in range(30):
        client.request(lost=number != 11)
    time.sleep(WINDOW_SECONDS)
    client.bad_requests()
    time.sleep(2 * WINDOW_SECONDS)
    now = time.time()
    time.sleep(WINDOW_SECONDS - now % WINDOW_SECONDS + 0.1)
    for _ in range(3):  # and the agent is stopped
        client.request()
    time.sleep(0.3)


def look(
    tmp_path: Path, database_url: str, broker: Broker, topic: str, *options: str
) -> tuple[Canaries, dict[str, float]]:
    """Runs the life with real agent and detector, and searches all that came out; with the agent's counters."""
    repository, state, canaries = tmp_path / "models", tmp_path / "state", Canaries()
    folder = repository / "tabular" / "1"
    folder.mkdir(parents=True)
    (folder / "reference.onnx").write_bytes(tabular(shift=0.001).SerializeToString())
    (folder / "model.onnx").write_bytes(tabular().SerializeToString())
    agent_port, detector_port = free_port(), free_port()
    agent_url, detector_url = (f"http://127.0.0.1:{port}" for port in (agent_port, detector_port))
    bus = [*broker.options(), "--topic", topic]
    with ExitStack() as stack:
        detector = reluscope(
            "detector", *bus, "--group", topic, "--database-url", database_url, "--port", str(detector_port),
            "--check-interval", "1", "--reference-requests", "60", "--reference-windows", "3", "--min-requests", "20",
            "--grace-seconds", "1", "--log-format", "json",
        )  # fmt: skip
        command = reluscope(
            "agent", *bus, "--repository", str(repository), "--state-dir", str(state), "--agent-id", "pod-1",
            "--port", str(agent_port), "--sample-rate", "1", "--window-seconds", str(WINDOW_SECONDS),
            "--window-grace-seconds", "0.5", "--overhead-budget", "off", "--duty-cycle", "1",
            "--paired-rate", "1", "--paired-per-minute", "6000", "--paired-duty-cycle", "1", *options,
        )  # fmt: skip
        ready = lambda: http_ok(f"{detector_url}/readyz")  # noqa: E731
        stack.enter_context(running("detector", detector, tmp_path / "detector.log", ready=ready))
        ready = lambda: http_ok(f"{agent_url}/v2/models/tabular/ready")  # noqa: E731
        agent = stack.enter_context(running("agent", command, tmp_path / "agent.log", ready=ready))
        time.sleep(1)  # paired replay is told of the model
        client = Client(agent_url, canaries)
        play(client)
        counters = httpx.get(f"{agent_url}/metrics").text
        canaries.text("agent's metrics", counters)
        shutil.copytree(state, tmp_path / "state while running")
        agent.send_signal(signal.SIGTERM)
        wait_for("the agent's end", lambda: agent.returncode is not None)
        messages = list(consumed(broker, topic))
        ends = sum(1 for name, _ in messages if name == topic)
        wait_for("all messages in Postgres", lambda: ingested(database_url) == ends)
        wait_for("a check", lambda: stored(database_url, "checks"), 30)
        canaries.text("detector's metrics", httpx.get(f"{detector_url}/metrics").text)
        canaries.text("findings", httpx.get(f"{detector_url}/api/v1/findings").text)
    for answer in client.answered():
        canaries.text("HTTP answer", answer)
    report = tmp_path / "report.html"
    done = running("report", reluscope("report", "--database-url", database_url, "--model", "tabular",
                   "--output", str(report)), tmp_path / "report.log", ready=report.exists)  # fmt: skip
    with done as process:
        wait_for("the report", lambda: process.returncode == 0)
    search(canaries, tmp_path, database_url, messages)
    return canaries, values(counters)


def search(canaries: Canaries, tmp_path: Path, database_url: str, messages: list[tuple[str, Any]]) -> None:
    """Searches what is left when agent and detector have gone."""
    for log in ("agent.log", "detector.log"):
        canaries.text(log, (tmp_path / log).read_text())
    canaries.text("report", (tmp_path / "report.html").read_text())
    for name, record in messages:
        for part in (record.key, record.value, *(value for _, value in record.headers), repr(record.headers).encode()):
            canaries.raw(f"kafka {name}", part or b"")
        canaries.message(f"kafka {name}", pb.Envelope.FromString(record.value))
    for folder in ("state while running", "state"):
        for path in sorted((tmp_path / folder).rglob("*")):
            if path.is_file():
                canaries.raw(f"{folder}/{path.name}", path.read_bytes())
        with sqlite3.connect(tmp_path / folder / "outbox.db") as outbox:
            for (payload,) in outbox.execute("SELECT payload FROM messages"):
                canaries.message(f"{folder}/outbox", pb.Envelope.FromString(payload))
    with psycopg.connect(psycopg_url(database_url), row_factory=dict_row) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        views = connection.execute("SELECT viewname AS tablename FROM pg_views WHERE schemaname = 'public'").fetchall()
        for table in [*tables, *views]:
            for row in connection.execute(f'SELECT * FROM "{table["tablename"]}"'.encode()):
                canaries.value(f"postgres {table['tablename']}", row)
                if isinstance(row.get("mean"), list):
                    canaries.summary(f"postgres {table['tablename']}", row)
                if row.get("sketch"):
                    canaries.message("postgres sketch", pb.ProbeSummary.FromString(row["sketch"]))


def consumed(broker: Broker, topic: str) -> Iterator[tuple[str, Any]]:
    """Every record of the topic and of its dead letters, decompressed."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap, api_version=broker.api_version, auto_offset_reset="earliest"
    )
    for name in sorted(consumer.topics()):
        if not name.startswith(topic):
            continue
        parts = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name) or ()]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends = consumer.end_offsets(parts)
        while any(consumer.position(part) < end for part, end in ends.items()):
            for batch in consumer.poll(timeout_ms=200).values():
                yield from ((name, record) for record in batch)
    consumer.close()


def ingested(database_url: str) -> int:
    with psycopg.connect(psycopg_url(database_url)) as connection:
        # Heartbeats have no keys of their own: offsets say how far all messages are applied.
        [(count,)] = connection.execute("SELECT coalesce(sum(next_offset), 0) FROM ingest_offsets").fetchall()
        return int(count)


def stored(database_url: str, table: str) -> bool:
    with psycopg.connect(psycopg_url(database_url)) as connection:
        query = f"SELECT 1 FROM {table} WHERE status = 'ok' OR status = 'findings' LIMIT 1"
        return bool(connection.execute(query.encode()).fetchall())


def values(metrics: str) -> dict[str, float]:
    """Series to value."""
    rows = (line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in rows}


@pytest.mark.kafka
def test_no_value_of_a_request_leaves_the_pod(tmp_path: Path, database_url: str, broker: Broker, topic: str) -> None:
    canaries, counters = look(tmp_path, database_url, broker, topic)
    assert canaries.found == []
    # The life had what it is about: requests told of, put off and withheld, refused, failed in replay, and compared.
    with psycopg.connect(psycopg_url(database_url)) as connection:
        layers: dict[str, int] = dict(
            connection.execute("SELECT layer, sum(n) FROM layer_health GROUP BY layer").fetchall()
        )
        compared = {row[0] for row in connection.execute("SELECT kind FROM model_comparisons WHERE n > 0")}
        [(least,)] = connection.execute("SELECT min(n) FROM layer_health").fetchall()
    assert set(layers) == {"features", "relu1", "scores_out"}
    assert min(layers.values()) >= 150
    assert least >= 20
    assert compared == {"reference_model", "served_response"}
    assert counters['reluscope_agent_carried_requests_total{model="tabular"}'] > 0
    assert counters['reluscope_agent_rejected_total{model="tabular",reason="replay_failed"}'] >= 1
    assert counters['reluscope_agent_rejected_total{model="tabular",reason="data"}'] >= 4
    log = (tmp_path / "agent.log").read_text()
    assert "INVALID_ARGUMENT in Gather node 'look_up'" in log
    assert "input 'token': data beyond INT32" in log
    assert "window.withheld" in log
    assert "reason=stopping" in log


def test_the_search_finds_what_groups_of_one_let_out(
    tmp_path: Path, database_url: str, broker: Broker, topic: str
) -> None:
    """With `--min-group 1`, which is for trying out, single requests leave; the search has to see that."""
    canaries, _ = look(tmp_path, database_url, broker, topic, "--min-group", "1")
    places = {line.split(":")[0].split(".")[0].split(",")[0] for line in canaries.found}
    assert {f"kafka {topic}".split(".")[0], "postgres windows"} <= places
    assert any(", mean times requests: " in line for line in canaries.found)


def test_the_search_finds_texts_numbers_and_tensors() -> None:
    canaries, row = Canaries(), np.array([[1234.5678, 0.0, 7.25e-3]], np.float32)
    canaries.plant(row)
    canaries.plant_derived([98.76543])
    number = canaries.plant_integer(98_765_432_100)
    canaries.text(
        "a", f"said {WORD.upper()} and {number}, took 1234.57 s, 1234.9 s, 12345678 and 2026-01-01T00:00:12.3456Z"
    )
    canaries.raw("b", b"..." + row.tobytes())
    canaries.raw("c", b"..." + struct.pack("<d", float(row[0, 0])))
    canaries.value("d", {"x": [1.0, 98.76543], "y": "fine", "n": number})
    n, value = 20, float(row[0, 2])
    message = pb.Envelope(agent_id="pod", window=pb.Window(probes=[pb.ProbeSummary(
        n=n, nonfinite=[0], mean=[value / n], m2=[value**2 * (1 - 1 / n)])]))  # fmt: skip
    canaries.message("e", message)
    assert len(canaries.found) == 3 + 1 + 1 + 2 + 2, canaries.found
