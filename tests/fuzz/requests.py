"""What arrives over HTTP at the agent: requests, responses and CloudEvents of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import MutableMapping, Sequence
from random import Random
from typing import Any

import numpy as np

from agent.intake.catalog import ModelMetadata
from agent.intake.http import build_app
from agent.intake.oip import parse_request, parse_response
from agent.intake.queue import ByteQueue, Captured
from agent.intake.tensors import OipError, TensorSpec
from agent.intake.unpacking import Limits, decompress, unpacked_size
from agent.metrics import AgentMetrics
from agent.rates.samplers import Samplers
from agent.rates.sampling import Sampler, id_at_head, id_of_response
from tests.fuzz.mutations import Mutation, of_bytes, of_json, of_lines
from tests.fuzz.runner import Target

IMAGE = TensorSpec("image", "FP32", (-1, 3))
MASK = TensorSpec("mask", "BOOL", (-1,))
IDS = TensorSpec("ids", "INT64", (-1, -1))
INPUTS = (IMAGE, MASK, IDS)
OUTPUTS = (TensorSpec("p", "FP32", (-1, 2)), TensorSpec("class", "UINT8", (-1,)))
LIMITS = Limits()
_VALUES = np.arange(6, dtype=np.float32)


def _request() -> bytes:
    inputs = [
        {"name": "image", "datatype": "FP32", "shape": [2, 3], "data": [[1.5, -2, 0], [4, 5, 6.25]]},
        {"name": "mask", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        {"name": "ids", "datatype": "INT64", "shape": [1, 4], "data": [1, 2, -3, 1 << 40]},
    ]
    return json.dumps({"id": "r-1", "parameters": {"a": 1}, "inputs": inputs}).encode()


def _binary() -> bytes:
    parts = {"image": _VALUES.tobytes(), "mask": b"\1\0", "ids": np.arange(4).tobytes()}
    shapes = {"image": [2, 3], "mask": [2], "ids": [1, 4]}
    types = {"image": "FP32", "mask": "BOOL", "ids": "INT64"}
    inputs = [
        {"name": n, "datatype": types[n], "shape": shapes[n], "parameters": {"binary_data_size": len(raw)}}
        for n, raw in parts.items()
    ]
    return json.dumps({"id": "r-2", "inputs": inputs}).encode() + b"".join(parts.values())


def _response() -> bytes:
    outputs = [
        {"name": "p", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]},
        {"name": "class", "datatype": "UINT8", "shape": [2], "data": [1, 0]},
    ]
    return json.dumps({"model_name": "digits", "model_version": "2", "id": "r-1", "outputs": outputs}).encode()


def targets() -> list[Target]:
    plain = [_request(), _binary()]
    packed = [
        b"g" + gzip.compress(plain[0], mtime=0),
        b"d" + zlib.compress(plain[1]),
        b"g" + gzip.compress(bytes(99_999)),
    ]
    raw = [b"0" + _VALUES.tobytes()]
    requests = [b"-" + body for body in plain]
    responses = [
        b"-" + _response(),
        b"-" + _response().replace(b'"data"', b'"x"', 1),
        b"g" + gzip.compress(_response()),
    ]
    errors = (OipError,)
    memory = 160 << 20  # a small body may decompress to 32 MiB, and may be numbers
    kept = (_kept(of_json), _kept(of_json), _kept(of_bytes), of_bytes)
    return [
        Target("oip-request", requests + packed + raw, kept, _parse_request, errors, memory),
        Target("oip-response", responses, kept, _parse_response, errors, memory),
        Target("oip-id", [*plain, _response()], (of_json, of_bytes), _read_id, ()),
        Target("intake-http", _http_messages(), (of_lines, of_bytes, _of_body), _Server(), (), memory),
    ]


def _kept(mutation: Mutation) -> Mutation:
    """Leaves the first byte alone, which says how the body is encoded, and mostly changes what is encoded."""

    def mutate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
        mark, body = data[:1], data[1:]
        if mark in (b"g", b"d") and random.random() < 0.7:
            try:
                inner = mutation(random, decompress(body, "gzip" if mark == b"g" else "deflate", 1 << 18), others)
            except OipError:
                return mark + mutation(random, body, others)
            return mark + (gzip.compress(inner, 1, mtime=0) if mark == b"g" else zlib.compress(inner, 1))
        return mark + mutation(random, body, others)

    return mutate


def _arguments(data: bytes) -> tuple[bytes, int | None, str | None]:
    encoding = {b"g": "gzip", b"d": "deflate"}.get(data[:1])
    length = {b"0": 0, b"1": len(data) // 2}.get(data[:1])
    return data[1:], length, encoding


def _parse_request(data: bytes) -> bool:
    body, length, encoding = _arguments(data)
    unpacked_size(body, encoding, LIMITS.max_decompressed_bytes)
    specs = INPUTS if length != 0 else INPUTS[:1]
    request = parse_request(body, length, specs, encoding=encoding, limits=LIMITS)
    assert request.id is None or isinstance(request.id, str)
    _as_declared(request.inputs, specs)
    assert len(request.inputs) == len(specs)
    return True


def _parse_response(data: bytes) -> bool:
    body, length, encoding = _arguments(data)
    response = parse_response(body, length, OUTPUTS, encoding=encoding, limits=LIMITS)
    _as_declared(response.outputs, OUTPUTS)
    return True


def _as_declared(arrays: dict[str, Any], specs: Sequence[TensorSpec]) -> None:
    types = {"FP32": np.float32, "BOOL": np.bool_, "INT64": np.int64, "UINT8": np.uint8}
    for spec in specs:
        if spec.name in arrays:
            array = arrays[spec.name]
            assert array.dtype == types[spec.datatype]
            assert len(array.shape) == len(spec.shape)
            assert all(wanted in (-1, size) for wanted, size in zip(spec.shape, array.shape, strict=True))
            assert array.size <= LIMITS.max_elements
            if spec.datatype == "BOOL":
                assert set(np.unique(array.view(np.uint8)).tolist()) <= {0, 1}


def _read_id(data: bytes) -> bool:
    """The id that is read before the answer is the one that parsing would find."""
    found, of_response = id_at_head(data), id_of_response(data)
    assert found is None or isinstance(found, str)
    assert of_response is None or isinstance(of_response, str)
    return found is not None or of_response is not None


class _Catalog:
    def version(self, model: str, version: str | None) -> ModelMetadata | None:
        return ModelMetadata("digits", "2", True, INPUTS, OUTPUTS) if model == "digits" else None

    def models(self) -> Sequence[ModelMetadata]:
        return []


def _http_messages() -> list[bytes]:
    event = (
        b"ce-specversion: 1.0\nce-id: r-1\nce-inferenceservicename: digits\nce-type: org.kubeflow.serving.inference."
    )
    validated = b"X-Reluscope-Validate: 1\n"
    return [
        b"POST /v2/models/digits/infer\nX-Request-Id: a\n" + validated + b"\n" + _request(),
        b"POST /v2/models/digits/versions/2/infer\nInference-Header-Content-Length: 0\n\n" + _binary(),
        b"POST /v2/models/digits/response\nX-Request-Id: a\nContent-Encoding: gzip\n\n"
        + gzip.compress(_response(), mtime=0),
        b"POST /v2/models/digits/response\n\n" + _response(),
        b"POST /\n" + event + b"request\n" + validated + b"\n" + _request(),
        b"POST /\n" + event + b"response\n\n" + _response(),
        b"GET /v2/models/digits\n\n",
        b"GET /v2/health/ready\n\n",
    ]


def _of_body(random: Any, data: bytes, others: Sequence[bytes]) -> bytes:
    head, mark, body = data.partition(b"\n\n")
    return head + mark + of_json(random, body, [_request(), _response()])


class _Server:
    """The agent's HTTP application without a socket: whatever comes, it answers, and never with an error of its own."""

    def __init__(self) -> None:
        self._queue: ByteQueue[Captured] = ByteQueue(1 << 20, 100)
        self._responses = 0
        self._app = build_app(
            _Catalog(),
            self._queue,
            Samplers(1.0, lambda rate: Sampler(rate, draw=Random(0).random)),
            AgentMetrics(),
            LIMITS,
            on_response=self._count,
        )
        self._loop = asyncio.new_event_loop()

    def _count(self, response: Captured) -> None:
        self._responses += 1

    def __call__(self, data: bytes) -> bool:
        """True where the answer is 200."""
        head, _, body = data.partition(b"\n\n")
        first, *lines = head.split(b"\n")
        method, _, path = first.decode("latin-1").partition(" ")
        headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode("latin-1"),
            "query_string": b"", "root_path": "", "scheme": "http", "headers": headers,
            "server": ("x", 1), "client": None,
        }  # fmt: skip
        half = len(body) // 2
        incoming = [
            {"type": "http.request", "body": body[:half], "more_body": True},
            {"type": "http.request", "body": body[half:], "more_body": False},
        ]
        answers: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            answers.append(message)

        self._loop.run_until_complete(self._app(scope, receive, send))
        self._queue.take(100, 0)
        status = answers[0]["status"]
        assert status < 500 or status == 503, status
        if status >= 400 and method == "POST" and answers[1]["body"].startswith(b"{"):
            assert len(answers[1]["body"]) < 2000
        return bool(status == 200)
