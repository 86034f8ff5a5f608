"""Responses over HTTP: their own endpoint, and the CloudEvents of KServe's logger for requests and responses alike."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import httpx
import orjson
import pytest
from starlette.applications import Starlette

from agent.intake.http import build_app
from agent.intake.queue import ByteQueue, Captured
from agent.intake.unpacking import Limits
from agent.metrics import AgentMetrics
from agent.rates.pairs import Pairs
from agent.rates.samplers import Samplers
from agent.rates.sampling import Sampler
from tests.agent.intake.test_http import FakeCatalog

BODY = orjson.dumps({"model_name": "digits", "id": "json-id", "outputs": []})
REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"


class Client:
    """Calls the application without a server."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    def post(self, path: str, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
                return await client.post(path, content=content, headers=headers)

        return asyncio.run(call())


@dataclass
class App:
    client: Client
    queue: ByteQueue[Captured]
    metrics: AgentMetrics
    sampler: Sampler
    responses: list[Captured] = field(default_factory=list)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"reluscope_agent_{name}", labels) or 0.0


@pytest.fixture
def app() -> App:
    queue: ByteQueue[Captured] = ByteQueue(1 << 20, 100)
    metrics, responses = AgentMetrics(), list[Captured]()
    now = [0.0]
    sampler = Sampler(1.0, Pairs(30, 100, clock=lambda: now[0]), lambda: 0.25)
    sampler.response("digits", "the first of all")
    now[0] += 30
    built = build_app(
        FakeCatalog(),
        queue,
        Samplers(1.0, lambda rate: sampler),
        metrics,
        Limits(max_body_bytes=1000),
        clock=lambda: 12.5,
        on_response=responses.append,
    )
    return App(Client(built), queue, metrics, sampler, responses)


def test_a_response_is_handed_on_as_it_came(app: App) -> None:
    got = app.client.post("/v2/models/digits/response", content=BODY)
    assert (got.status_code, got.json()) == (200, {"model_name": "digits", "model_version": "2"})
    assert app.responses == [Captured("digits", "2", BODY, None, None, 1, 12_500, 0.25)]
    assert app.count("responses_total", model="digits") == 1
    assert app.queue.depth() == (0, 0), "it is no request"


def test_the_header_names_the_request_before_the_body(app: App) -> None:
    headers = {"X-Request-Id": "header-id", "Inference-Header-Content-Length": "9", "Content-Encoding": "gzip"}
    app.client.post("/v2/models/digits/versions/1/response", content=b"packed", headers=headers)
    app.client.post("/v2/models/digits/infer", content=b"{}", headers={"X-Request-Id": "header-id"})
    assert [item.pair for item in app.queue.take(10, 0)] == [1]
    assert app.responses == [Captured("digits", "1", b"packed", 9, "gzip", 1, 12_500, 0.25)]


def test_a_response_without_an_id_is_refused(app: App) -> None:
    got = app.client.post("/v2/models/digits/response", content=b'{"outputs": []}')
    assert got.status_code == 400
    assert "a response needs the id of its request" in got.json()["error"]
    assert app.count("rejected_total", model="digits", reason="no_id") == 1
    assert app.responses == []


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/v2/models/none/response", BODY, 404),
        ("/v2/models/cold/response", BODY, 503),
        ("/v2/models/digits/response", b"x" * 1001, 413),
    ],
)
def test_what_cannot_be_taken_gets_an_error(app: App, path: str, content: bytes, status: int) -> None:
    got = app.client.post(path, content=content, headers={"X-Request-Id": "a"})
    assert got.status_code == status
    assert got.json()["error"]
    assert app.responses == []


def event(kind: str, model: str = "digits") -> dict[str, str]:
    return {"ce-specversion": "1.0", "ce-type": kind, "ce-id": "event-id", "ce-inferenceservicename": model}


def test_both_events_of_a_pair_carry_the_same_id(app: App) -> None:
    assert app.client.post("/", content=b'{"inputs": []}', headers=event(REQUEST)).status_code == 200
    assert app.client.post("/", content=BODY, headers=event(RESPONSE)).status_code == 200
    (request,) = app.queue.take(10, 1)
    assert (request.model, request.pair, request.body) == ("digits", 1, b'{"inputs": []}')
    assert [item.pair for item in app.responses] == [1]


def test_other_events_are_refused(app: App) -> None:
    got = app.client.post("/", content=BODY, headers=event("com.example.other"))
    assert got.status_code == 400
    assert "POST / takes CloudEvents of type" in got.json()["error"]
    assert app.client.post("/", content=BODY).status_code == 400
    assert app.client.post("/", content=BODY, headers=event(RESPONSE, "none")).status_code == 404
    assert app.count("rejected_total", model="", reason="unknown_model") == 1


def test_a_response_to_a_request_outside_the_sample_is_not_handed_on(app: App) -> None:
    app.sampler.rate = 0.2
    assert app.client.post("/v2/models/digits/response", content=BODY).status_code == 200
    assert app.responses == []
    assert app.count("responses_total", model="digits") == 1
