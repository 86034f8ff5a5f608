"""Intake over a real uvicorn server, with the real Triton client and with raw sockets."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from agent.intake import http
from agent.intake.catalog import ModelMetadata
from agent.intake.http import build_app
from agent.intake.oip import parse_request
from agent.intake.queue import ByteQueue, Captured
from agent.intake.server import serve
from agent.intake.tensors import TensorSpec
from agent.intake.unpacking import Limits
from agent.metrics import AgentMetrics
from agent.rates.samplers import Samplers
from agent.rates.sampling import Sampler

IMAGE = TensorSpec("image", "FP32", (-1, 3))
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
LIMITS = Limits(max_body_bytes=1 << 20, max_receiving_bytes=2 << 20, max_receive_seconds=0.5)


class FakeCatalog:
    """Two versions of `digits`, the newer served, and `cold`, which is not ready."""

    def __init__(self) -> None:
        self._models = [
            ModelMetadata("cold", "1", False, (IMAGE,), ()),
            ModelMetadata("digits", "1", True, (IMAGE,), (TensorSpec("p", "FP32", (-1, 10)),)),
            ModelMetadata("digits", "2", True, (IMAGE,), (TensorSpec("p", "FP32", (-1, 10)),)),
        ]

    def version(self, model: str, version: str | None) -> ModelMetadata | None:
        found = [one for one in self._models if one.name == model and version in (None, one.version)]
        return found[-1] if found else None

    def models(self) -> Sequence[ModelMetadata]:
        return self._models


@dataclass
class Running:
    """The server and the parts around it."""

    port: int
    queue: ByteQueue[Captured]
    metrics: AgentMetrics
    samplers: Samplers
    catalog: FakeCatalog = field(default_factory=FakeCatalog)

    @property
    def digits(self) -> Sampler:
        """The sampler of what is sent without a version."""
        return self.samplers.of(("digits", "2"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"reluscope_agent_{name}", labels) or 0.0

    def taken(self) -> Captured:
        (captured,) = self.queue.take(10, 2)
        return captured


@pytest.fixture
def running() -> Iterator[Running]:
    queue: ByteQueue[Captured] = ByteQueue(max_bytes=3 << 20, max_items=100)
    here = Running(0, queue, AgentMetrics(), Samplers(1.0, lambda rate: Sampler(rate, draw=Random(0).random)))
    app = build_app(here.catalog, queue, here.samplers, here.metrics, LIMITS, clock=lambda: 1234.5)
    stop, listening = threading.Event(), threading.Event()

    def note(port: int) -> None:
        here.port = port
        listening.set()

    thread = threading.Thread(target=serve, args=(app, "127.0.0.1", 0, stop, note))
    thread.start()
    try:
        assert listening.wait(10)
        yield here
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def client(running: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
        yield client


def infer_input(binary: bool = True) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", [2, 3], "FP32")
    tensor.set_data_from_numpy(VALUES, binary_data=binary)
    return [tensor]


def infer_json(**changes: object) -> bytes:
    entry = {"name": "image", "datatype": "FP32", "shape": [2, 3], "data": VALUES.ravel().tolist()} | changes
    return json.dumps({"id": "json-id", "inputs": [entry]}).encode()


class TestTritonClient:
    def test_health_and_metadata(self, client: triton.InferenceServerClient) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        assert client.is_model_ready("digits", "1")
        assert not client.is_model_ready("cold")
        assert not client.is_model_ready("nothing")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata("digits") == {
            "name": "digits",
            "versions": ["1", "2"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "p", "datatype": "FP32", "shape": [-1, 10]}],
        }

    @pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("binary", [True, False])
    def test_infer(
        self, running: Running, client: triton.InferenceServerClient, binary: bool, compression: str | None
    ) -> None:
        result = client.infer(
            "digits", infer_input(binary), request_id="r-1", request_compression_algorithm=compression
        )
        answer = result.get_response()
        assert (answer["model_name"], answer["model_version"], answer["outputs"]) == ("digits", "2", [])
        assert answer.get("id") == (None if compression else "r-1")
        captured = running.taken()
        assert (captured.model, captured.version, captured.encoding) == ("digits", "2", compression)
        assert captured.arrived_ms == 1234500
        request = parse_request(captured.body, captured.header_length, [IMAGE], encoding=captured.encoding)
        assert request.id == "r-1"
        np.testing.assert_array_equal(request.inputs["image"], VALUES)

    def test_infer_on_a_version(self, running: Running, client: triton.InferenceServerClient) -> None:
        client.infer("digits", infer_input(), model_version="1")
        assert running.taken().version == "1"

    def test_unknown_model_and_version(self, running: Running, client: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="unknown model or version; there are: "):
            client.infer("nothing", infer_input())
        with pytest.raises(InferenceServerException, match="digits version 2"):
            client.infer("digits", infer_input(), model_version="9")
        assert running.count("rejected_total", model="", reason="unknown_model") == 2

    def test_model_that_is_not_ready(self, running: Running, client: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="not ready"):
            client.infer("cold", infer_input())
        assert running.count("dropped_total", reason="model_not_ready") == 1

    def test_oversize_body(self, running: Running, client: triton.InferenceServerClient) -> None:
        tensor = triton.InferInput("image", [100_000, 3], "FP32")
        tensor.set_data_from_numpy(np.zeros((100_000, 3), np.float32))
        with pytest.raises(InferenceServerException, match="more than 1048576"):
            client.infer("digits", [tensor])
        assert running.count("rejected_total", model="digits", reason="too_large") == 1
        client.infer("digits", infer_input())


class TestAnswer:
    def post(self, running: Running, body: bytes, path: str = "digits", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{running.url}/v2/models/{path}/infer", content=body, headers=named)

    def test_comes_before_parsing(self, running: Running) -> None:
        answer = self.post(running, b"this is not even JSON")
        assert answer.status_code == 200
        assert answer.json() == {"model_name": "digits", "model_version": "2", "outputs": []}
        assert running.taken().body == b"this is not even JSON"

    def test_validation_on_request(self, running: Running) -> None:
        good = self.post(running, infer_json(), X_Reluscope_Validate="1")
        assert (good.status_code, good.json()["id"]) == (200, "json-id")
        bad = self.post(running, infer_json(shape=[3, 3]), X_Reluscope_Validate="1")
        assert bad.status_code == 400
        assert "its shape takes 9" in bad.json()["error"]
        assert running.count("rejected_total", model="digits", reason="data") == 1
        assert running.queue.depth()[0] == 1

    def test_drops_are_counted_when_the_queue_is_full(self, running: Running) -> None:
        for _ in range(4):
            assert self.post(running, bytes(1_000_000)).status_code == 200
        assert running.queue.depth()[0] == 3
        assert running.count("dropped_total", reason="queue_full") == 1
        assert running.count("sampled_total", model="digits") == 4
        assert running.count("requests_total", model="digits") == 4

    def test_requests_outside_the_sample_are_answered_alike(self, running: Running) -> None:
        running.digits.rate = 0.0
        assert self.post(running, infer_json()).json()["id"] == "json-id"
        assert running.queue.depth() == (0, 0)
        assert running.count("requests_total", model="digits") == 1
        assert running.count("sampled_total", model="digits") == 0

    @pytest.mark.parametrize("headers", [{}, {"X_Request_Id": "always this"}], ids=["body", "constant id"])
    def test_one_and_the_same_request_is_in_the_sample_as_often_as_any(
        self, running: Running, headers: dict[str, str]
    ) -> None:
        running.digits.rate = 0.3
        for _ in range(60):
            self.post(running, infer_json(), **headers)
        assert 5 <= running.queue.depth()[0] <= 35
        assert all(captured.draw < 0.3 for captured in running.queue.take(100, 0))

    @pytest.mark.parametrize("length", ["x", "-1", "1_0", "9" * 20, "1.5"])
    def test_bad_header_length(self, running: Running, length: str) -> None:
        answer = self.post(running, b"{}", Inference_Header_Content_Length=length)
        assert (answer.status_code, "Inference-Header" in answer.json()["error"]) == (400, True)
        assert running.count("rejected_total", model="digits", reason="bad_header") == 1

    def test_unknown_encoding(self, running: Running) -> None:
        assert self.post(running, b"{}", Content_Encoding="br").status_code == 415

    def test_raw_tensor(self, running: Running) -> None:
        self.post(running, VALUES.tobytes(), Inference_Header_Content_Length="0")
        assert running.taken().header_length == 0

    def test_gzip_bomb_is_refused_on_validation(self, running: Running) -> None:
        bomb = gzip.compress(bytes(100 << 20))
        answer = self.post(running, bomb, X_Reluscope_Validate="1", Content_Encoding="gzip")
        assert (answer.status_code, "decompresses" in answer.json()["error"]) == (413, True)

    def test_unknown_path_and_method(self, running: Running) -> None:
        assert httpx.get(f"{running.url}/nothing").json() == {"error": "Not Found"}
        assert httpx.get(f"{running.url}/v2/models/digits/infer").status_code == 405

    def test_metrics_page(self, running: Running) -> None:
        self.post(running, infer_json())
        page = httpx.get(f"{running.url}/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'reluscope_agent_requests_total{model="digits"} 1.0' in page.text
        assert 'reluscope_agent_dropped_total{reason="queue_full"} 0.0' in page.text
        assert "_created" not in page.text


class TestWhatCounts:
    """Against the bound of the queue, which is 3 MiB here."""

    def post(self, running: Running, body: bytes, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{running.url}/v2/models/digits/infer", content=body, headers=named)

    def test_bodies_that_wait_for_validation(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        go = threading.Event()

        def slow(*arguments: object, **named: object) -> None:
            assert go.wait(10)

        monkeypatch.setattr(http, "parse_request", slow)
        statuses: list[int] = []
        one = lambda: statuses.append(self.post(running, bytes(1_000_000), X_Reluscope_Validate="1").status_code)  # noqa: E731
        threads = [threading.Thread(target=one) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: running.queue.depth() == (0, 3 * 1_000_512))
        refused = self.post(running, bytes(1_000_000), X_Reluscope_Validate="1")
        assert (refused.status_code, "no room to validate" in refused.json()["error"]) == (503, True)
        assert running.count("dropped_total", reason="queue_full") == 1
        go.set()
        for thread in threads:
            thread.join(10)
        assert statuses == [200] * 3
        assert running.queue.depth() == (3, 3 * 1_000_512), "each in its turn, as what waits for replay"

    @pytest.mark.parametrize(("encoding", "packed"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
    def test_packed_bodies_count_with_what_they_unpack_to(
        self, running: Running, encoding: str, packed: Callable[[bytes], bytes]
    ) -> None:
        body = packed(bytes(1_400_000))
        assert len(body) < 3000
        for _ in range(3):
            assert self.post(running, body, Content_Encoding=encoding).status_code == 200
        assert running.queue.depth()[0] == 2
        assert running.count("dropped_total", reason="queue_full") == 1
        assert running.count("overflowed_total", model="digits", version="2") == 1

    def test_what_says_that_it_unpacks_to_too_much_is_refused_at_the_door(self, running: Running) -> None:
        answer = self.post(running, gzip.compress(bytes(33 << 20)), Content_Encoding="gzip")
        assert answer.status_code == 413
        assert running.queue.depth() == (0, 0)
        assert running.count("rejected_total", model="digits", reason="too_large") == 1

    def test_what_unpacks_to_more_than_it_says_is_refused(self, running: Running) -> None:
        liar = gzip.compress(infer_json() + bytes(1_000_000))[:-4] + (10).to_bytes(4, "little")
        answer = self.post(running, liar, Content_Encoding="gzip", X_Reluscope_Validate="1")
        assert answer.status_code == 415
        assert "more than the 10 bytes that its end says" in answer.json()["error"]


class TestHostileConnections:
    def start(self, running: Running, *headers: str) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        lines = ["POST /v2/models/digits/infer HTTP/1.1", "Host: x", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        return connection

    def test_chunked_body_without_end(self, running: Running) -> None:
        with self.start(running, "Transfer-Encoding: chunked") as connection:
            for _ in range(20):
                connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            assert b" 413 " in connection.recv(100)
        assert running.count("rejected_total", model="digits", reason="too_large") == 1

    def test_slow_body(self, running: Running) -> None:
        with self.start(running, "Content-Length: 100") as connection:
            assert b" 408 " in connection.recv(100)
        assert running.count("dropped_total", reason="slow_body") == 1
        assert running.metrics.tally("digits", "2").read()["dropped"] == 1

    def test_client_that_leaves(self, running: Running) -> None:
        self.start(running, "Content-Length: 100").close()
        eventually(lambda: running.count("dropped_total", reason="disconnected") == 1)

    def test_all_bodies_together_are_bounded(self, running: Running) -> None:
        part = bytes(900_000)
        slow = [self.start(running, "Content-Length: 1000000") for _ in range(2)]
        for connection in slow:
            connection.sendall(part)
        time.sleep(0.2)
        with self.start(running, "Content-Length: 1000000") as connection:
            connection.sendall(part)
            assert b" 503 " in connection.recv(100)
        assert running.count("dropped_total", reason="inflight_bytes") == 1
        for connection in slow:
            connection.close()
        eventually(lambda: httpx.post(f"{running.url}/v2/models/digits/infer", content=part).status_code == 200)

    def test_garbage(self, running: Running) -> None:
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(b"\x16\x03\x01\x00garbage\r\n\r\n")
            assert b" 400 " in connection.recv(100)
        assert httpx.get(f"{running.url}/v2/health/live").status_code == 200


def test_address_in_use_is_an_error(running: Running) -> None:
    app = build_app(running.catalog, running.queue, running.samplers, running.metrics, LIMITS)
    with pytest.raises(OSError, match="in use"):
        serve(app, "127.0.0.1", running.port, threading.Event())


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
