"""Asks the model server which versions it serves, in a thread of its own; others read the last answer from memory.

Triton answers for all models at once (its model repository extension, POST /v2/repository/index). Servers without it
are asked model by model, as the Open Inference Protocol has it: the model's metadata for its versions, and whether each
is ready. What cannot be understood, comes too late or not at all changes nothing: the last answer stands.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import orjson
import structlog

from agent.logging import redact_text
from agent.metrics import AgentMetrics
from agent.serving.versions import ServerAnswer

log = structlog.get_logger()

_LARGEST = 4 << 20
"""Bytes of an answer."""
_MOST_VERSIONS = 64
"""Of a model, asked one by one."""
_NO_INDEX = (404, 405, 501)
_UNDECIDED = frozenset({"LOADING", "UNLOADING", "UNKNOWN"})


class ServerError(Exception):
    """The server gave no answer that can be used; the message says what it did instead."""


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes


class Server:
    """A model server at a base URL."""

    def __init__(self, url: str, timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``timeout_seconds`` is for all of one answer. Raises ValueError where the URL is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{redact_text(url)!r} is no http:// or https:// URL with a host")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._base = parts.path.rstrip("/")
        self._timeout = timeout_seconds
        self._clock = clock

    def ask(self, models: Collection[str], before: ServerAnswer | None) -> ServerAnswer:
        """What is ready, of all models or at least of ``models``; raises ServerError.

        A model that is just being loaded or unloaded keeps the versions of the answer ``before``.
        """
        deadline = self._clock() + self._timeout
        reply = self._request("POST", "/v2/repository/index", deadline, b"{}")
        if reply.status == 200:
            return read_index(reply.body, before)
        if reply.status not in _NO_INDEX:
            raise ServerError(f"POST /v2/repository/index answers {reply.status}")
        found = ((model, self._versions(model, deadline)) for model in sorted(models))
        return ServerAnswer({model: versions for model, versions in found if versions is not None})

    def _versions(self, model: str, deadline: float) -> tuple[str, ...] | None:
        """The ready versions of a model; None where the server does not know it, or does not say its versions."""
        path = f"/v2/models/{quote(model, safe='')}"
        reply = self._request("GET", path, deadline)
        if reply.status in (400, 404):  # Triton says 400 of a model that it does not know
            return None
        if reply.status != 200:
            raise ServerError(f"GET {path} answers {reply.status}")
        metadata = _json(reply.body, path)
        versions = metadata.get("versions") if isinstance(metadata, dict) else None
        if not isinstance(versions, list) or not versions:
            return None  # the protocol leaves it to the server
        numbered = [version for version in versions if _is_version(version)][-_MOST_VERSIONS:]
        if not numbered:
            return None
        ready = (self._request("GET", f"{path}/versions/{version}/ready", deadline).status for version in numbered)
        return tuple(version for version, status in zip(numbered, ready, strict=True) if status == 200)

    def _request(self, method: str, path: str, deadline: float, body: bytes | None = None) -> _Reply:
        left = deadline - self._clock()
        if left <= 0:
            raise ServerError(f"no answer within {self._timeout:g} seconds")
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=left)
        cut: threading.Timer | None = None
        try:
            connection.connect()
            # A timeout of the socket is for each read: what drips is ended by cutting the connection.
            cut = threading.Timer(max(0.0, deadline - self._clock()), _cut, (connection.sock,))
            cut.daemon = True
            cut.start()
            connection.request(method, self._base + path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            content = response.read(_LARGEST + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._clock() >= deadline:
                raise ServerError(f"no answer within {self._timeout:g} seconds") from error
            raise ServerError(f"{method} {path}: {type(error).__name__}: {error}") from error
        finally:
            if cut is not None:
                cut.cancel()
            connection.close()
        if self._clock() >= deadline:
            raise ServerError(f"no answer within {self._timeout:g} seconds")
        if len(content) > _LARGEST:
            raise ServerError(f"{method} {path}: the answer has more than {_LARGEST} bytes")
        return _Reply(response.status, content)


class ServerWatch:
    """Asks again and again, and keeps the last answer."""

    def __init__(
        self,
        server: Server,
        metrics: AgentMetrics,
        models: Callable[[], Collection[str]],
        interval_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``models`` names those in the repository; ``clock`` gives Unix seconds."""
        self._server = server
        self._metrics = metrics
        self._models = models
        self._interval = interval_seconds
        self._clock = clock
        self._failure: str | None = None
        self._asked = threading.Event()
        self.answer: ServerAnswer | None = None
        """The last one that could be used; None before the first."""
        metrics.server_answers_total.labels("ok")
        metrics.server_answers_total.labels("failed")
        metrics.last_server_answer_timestamp_seconds.set(0)

    def run(self, stop: threading.Event) -> None:
        """Asks until stopped."""
        while not stop.is_set():
            self.ask()
            stop.wait(self._interval)

    def wait(self, seconds: float) -> None:
        """Waits for the first attempt to end, whatever came of it, so that the start does not guess for nothing."""
        self._asked.wait(seconds)

    def ask(self) -> None:
        """Asks once; says once when the server cannot be asked, and when it can again."""
        try:
            answer = self._server.ask(self._models(), self.answer)
        except ServerError as error:
            self._metrics.server_answers_total.labels("failed").inc()
            if self._failure is None:
                kept = "the last answer" if self.answer is not None else "the configuration or the repository's policy"
                log.warning("server.no_answer", reason=str(error), observed_by=kept)
            self._failure = str(error)
        else:
            self._metrics.server_answers_total.labels("ok").inc()
            self._metrics.last_server_answer_timestamp_seconds.set(self._clock())
            if self._failure is not None or self.answer is None:
                log.info("server.answers", ready={model: list(ready) for model, ready in answer.ready.items()})
            self._failure, self.answer = None, answer
        finally:
            self._asked.set()


def read_index(body: bytes, before: ServerAnswer | None = None) -> ServerAnswer:
    """Triton's repository index; raises ServerError where it is none.

    A model of which nothing is ready but something is being loaded or unloaded keeps its versions of ``before``, and is
    left out where there are none: a server that starts has not decided yet.
    """
    path = "/v2/repository/index"
    index = _json(body, path)
    if not isinstance(index, list):
        raise ServerError(f"{path}: the answer is no array")
    ready: dict[str, list[str]] = {}
    undecided: set[str] = set()
    for entry in index:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise ServerError(f"{path}: an entry is no object with a name")
        versions = ready.setdefault(name, [])
        state = entry.get("state")
        if state == "READY" and _is_version(entry.get("version")):
            versions.append(entry["version"])
        elif state in _UNDECIDED:
            undecided.add(name)
    answer = {name: tuple(versions) for name, versions in ready.items()}
    for name in undecided:
        if not answer[name]:
            kept = before.ready.get(name) if before is not None else None
            answer.pop(name)
            if kept is not None:
                answer[name] = kept
    return ServerAnswer(answer)


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 18


def _json(body: bytes, path: str) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ServerError(f"{path}: the answer is no JSON") from error


def _cut(sock: socket.socket) -> None:
    """Ends a connection under the thread that reads from it."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself
