"""Open Inference Protocol v2 over HTTP: takes a request, answers at once, and leaves the rest to others.

Before the answer a request costs only this: its body is read within bounds, a number is drawn, and, if it is in the
sample, it is offered to the queue. Nothing is parsed or decompressed. The outputs in the answer are empty: the agent
observes, it does not serve. With `X-Reluscope-Validate: 1` a request is parsed first, for setting up a new client;
meanwhile it counts against the queue's bound, with what it unpacks to.

The server's responses may be mirrored too, to `.../response` with the id of their request; and both may come as the
CloudEvents that KServe's logger sends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.intake.bodies import Bodies, NotReceived, encoding_of, header_length_of
from agent.intake.catalog import Catalog, ModelMetadata, describe
from agent.intake.oip import parse_request
from agent.intake.queue import ByteQueue, Captured
from agent.intake.tensors import OipError
from agent.intake.unpacking import Limits, unpacked_size
from agent.metrics import CONTENT_TYPE, AgentMetrics
from agent.rates.pairs import Arrival
from agent.rates.samplers import Samplers
from agent.rates.sampling import id_at_head, id_of_response

_EVENT_TYPE = "org.kubeflow.serving.inference."
"""Followed by "request" or "response": https://kserve.github.io/website/docs/model-serving/predictive-inference/logger"""
_MOST_LISTED = 20
"""Models in an answer."""
_OVERHEAD = 512
"""Bytes that a queued request takes besides its body."""


def build_app(
    catalog: Catalog,
    queue: ByteQueue[Captured],
    samplers: Samplers,
    metrics: AgentMetrics,
    limits: Limits,
    clock: Callable[[], float] = time.time,
    on_response: Callable[[Captured], None] = lambda response: None,
) -> Starlette:
    """The agent's HTTP application: inference, responses, metadata, health and /metrics.

    ``on_response`` gets the responses to requests of the sample. It is called on the event loop: it may not block and
    may not raise.
    """
    intake = _Intake(catalog, queue, samplers, metrics, limits, clock, on_response)
    routes = [
        Route("/", intake.event, methods=["POST"]),
        Route("/v2", intake.server, methods=["GET"]),
        Route("/v2/health/live", intake.live, methods=["GET"]),
        Route("/v2/health/ready", intake.ready, methods=["GET"]),
        Route("/metrics", intake.metrics_page, methods=["GET"]),
    ]
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes.append(Route(path + "/infer", intake.infer, methods=["POST"]))
        routes.append(Route(path + "/response", intake.response, methods=["POST"]))
        routes.append(Route(path, intake.metadata, methods=["GET"]))
        routes.append(Route(path + "/ready", intake.model_ready, methods=["GET"]))
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})


class _Intake:
    """The handlers."""

    def __init__(
        self,
        catalog: Catalog,
        queue: ByteQueue[Captured],
        samplers: Samplers,
        metrics: AgentMetrics,
        limits: Limits,
        clock: Callable[[], float],
        on_response: Callable[[Captured], None],
    ) -> None:
        self._catalog = catalog
        self._queue = queue
        self._samplers = samplers
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._on_response = on_response
        self._bodies = Bodies(limits)
        self._validating = asyncio.Lock()

    async def infer(self, request: Request) -> Response:
        """Answer, having put the request into the queue where it is in the sample."""
        return await self._take_request(request, self._find(request), request.headers.get("x-request-id"))

    async def response(self, request: Request) -> Response:
        """Answer, having handed on the server's response."""
        return await self._take_response(request, self._find(request), request.headers.get("x-request-id"))

    async def event(self, request: Request) -> Response:
        """A request or a response as a CloudEvent in binary mode; its id and its model are in headers."""
        kind = request.headers.get("ce-type", "").removeprefix(_EVENT_TYPE)
        if kind not in ("request", "response"):
            raise HTTPException(400, f"POST / takes CloudEvents of type {_EVENT_TYPE}request and {_EVENT_TYPE}response")
        model = self._find_named(request.headers.get("ce-inferenceservicename", ""), None, counted=True)
        take = self._take_request if kind == "request" else self._take_response
        return await take(request, model, request.headers.get("ce-id"))

    async def _take_request(self, request: Request, model: ModelMetadata, header_id: str | None) -> Response:
        self._metrics.arrived(model.key)
        if not model.ready:
            self._metrics.dropped(model.key, "model_not_ready")
            return _not_ready(model)
        try:
            header_length = header_length_of(request)
            encoding = encoding_of(request)
            body = await self._bodies.receive(request)
            weight = len(body) + unpacked_size(body, encoding, self._limits.max_decompressed_bytes) + _OVERHEAD
            if request.headers.get("x-reluscope-validate") == "1":
                await self._validate(model, body, header_length, encoding, weight)
        except OipError as error:
            self._metrics.rejected(model.key, error.reason)
            return _refused(error)
        except NotReceived as lost:
            self._metrics.dropped(model.key, lost.reason)
            raise
        body_id = id_at_head(body) if encoding is None and header_length != 0 else None
        arrival = self._samplers.of(model.key).request(model.name, header_id or body_id)
        if arrival.kept:
            self._metrics.sampled(model.key)
            captured = self._captured(model, body, header_length, encoding, arrival)
            if not self._queue.offer(captured, weight, captured.key):
                self._metrics.dropped(model.key, "queue_full")
                self._metrics.overflowed_total.labels(*captured.key).inc()
        answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": []}
        if body_id is not None:
            answer["id"] = body_id
        return _json(answer)

    async def _validate(
        self, model: ModelMetadata, body: bytes, header_length: int | None, encoding: str | None, weight: int
    ) -> None:
        """Raises OipError where the request could not be replayed, NotReceived where there is no room to look."""
        if not self._queue.hold(weight):
            detail = "no room to validate now: the queue is full; try again, or raise --queue-mib"
            raise NotReceived(503, detail, "queue_full")
        try:
            async with self._validating:  # one at a time: this is for people, not for traffic
                await asyncio.to_thread(
                    parse_request, body, header_length, model.inputs, encoding=encoding, limits=self._limits
                )
        finally:
            self._queue.release(weight)

    async def _take_response(self, request: Request, model: ModelMetadata, header_id: str | None) -> Response:
        self._metrics.responses_total.labels(model.name).inc()
        if not model.ready:
            return _not_ready(model)
        try:
            header_length = header_length_of(request)
            encoding = encoding_of(request)
            body = await self._bodies.receive(request)
        except OipError as error:
            self._metrics.rejected_total.labels(model.name, error.reason).inc()
            return _refused(error)
        except NotReceived as lost:
            self._metrics.dropped_total.labels(lost.reason).inc()
            raise
        response_id = header_id or (id_of_response(body) if encoding is None else None)
        if not response_id:
            self._metrics.rejected_total.labels(model.name, "no_id").inc()
            return _json(
                {"error": 'a response needs the id of its request: X-Request-Id, or "id" early in its JSON'}, 400
            )
        arrival = self._samplers.of(model.key).response(model.name, response_id)
        if arrival is not None:
            self._on_response(self._captured(model, body, header_length, encoding, arrival))
        return _json({"model_name": model.name, "model_version": model.version})

    def _captured(
        self, model: ModelMetadata, body: bytes, header_length: int | None, encoding: str | None, arrival: Arrival
    ) -> Captured:
        at_ms = int(self._clock() * 1000)
        return Captured(model.name, model.version, body, header_length, encoding, arrival.pair, at_ms, arrival.draw)

    def _find(self, request: Request) -> ModelMetadata:
        name, version = request.path_params["model"], request.path_params.get("version")
        return self._find_named(name, version, counted=request.method == "POST")

    def _find_named(self, name: str, version: str | None, *, counted: bool) -> ModelMetadata:
        model = self._catalog.version(name, version)
        if model is None:
            if counted:  # the name is the client's, so it is no label
                self._metrics.rejected_total.labels("", "unknown_model").inc()
            listed = ", ".join(f"{one.name} version {one.version}" for one in self._catalog.models()[:_MOST_LISTED])
            raise HTTPException(404, f"unknown model or version; there are: {listed or 'none yet'}")
        return model

    async def server(self, request: Request) -> Response:
        """Server metadata."""
        return _json({"name": "reluscope-agent", "version": "2", "extensions": ["binary_tensor_data"]})

    async def live(self, request: Request) -> Response:
        """200 while the event loop turns."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """200 once at least one model can be replayed."""
        ready = any(model.ready for model in self._catalog.models())
        return _json({"ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        """Model metadata: inputs and outputs as the model declares them."""
        model = self._find(request)
        versions = [other.version for other in self._catalog.models() if other.name == model.name]
        return _json(describe(model, versions))

    async def model_ready(self, request: Request) -> Response:
        """200 where requests for this model can be replayed."""
        model = self._find(request)
        return _json({"name": model.name, "ready": model.ready}, 200 if model.ready else 503)

    def metrics_page(self, request: Request) -> Response:
        """The text exposition; no coroutine, so that it is rendered on a worker thread."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE)


def _refused(error: OipError) -> Response:
    return _json({"error": error.message}, {"too_large": 413, "bad_encoding": 415}.get(error.reason, 400))


def _not_ready(model: ModelMetadata) -> Response:
    return _json({"error": f"model {model.name} version {model.version} is not ready"}, 503)


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _json({"error": error.detail}, error.status_code)
