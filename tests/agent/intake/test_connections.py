"""Connections that never end their request, or never end its head, neither starve the agent nor fill its memory."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import get_args

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.intake.connections import ConnectionLimits, Connections, Reason
from agent.intake.server import serve
from agent.metrics import CLOSED_REASONS

LIMITS = ConnectionLimits(most=20, head_bytes=64 << 10, request_seconds=1.0)


@dataclass
class Running:
    port: int = 0
    closed: Counter[str] = field(default_factory=Counter)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


async def _live(request: Request) -> Response:
    return Response(b"{}")


async def _length(request: Request) -> Response:
    return Response(str(len(await request.body())).encode())


@pytest.fixture
def running() -> Iterator[Running]:
    here, stop, listening = Running(), threading.Event(), threading.Event()
    app = Starlette(routes=[Route("/live", _live), Route("/length", _length, methods=["POST"])])

    def note(port: int) -> None:
        here.port = port
        listening.set()

    def closed(reason: str) -> None:
        here.closed[reason] += 1

    thread = threading.Thread(target=serve, args=(app, "127.0.0.1", 0, stop, note, Connections(LIMITS, closed)))
    thread.start()
    try:
        assert listening.wait(10)
        yield here
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def is_closed(one: socket.socket, seconds: float = 5.0) -> bool:
    one.settimeout(seconds)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert holds()


def test_what_waits_longest_makes_room(running: Running) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(running.connect()) for _ in range(LIMITS.most)]
        for one in held:
            one.sendall(b"POST /length HTTP/1.1\r\nHo")
        for _ in range(3):
            assert httpx.get(running.url("/live"), timeout=5).status_code == 200
        assert is_closed(held[0])
    assert running.closed["too_many"] >= 1


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GE",
        b"GET /live HTTP/1.1\r\nHo",
        b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        b"GET /live HTTP/1.1\r\nHost: x\r\n\r\nGET /li",
    ],
)
def test_a_request_that_does_not_end_is_cut_off(running: Running, sent: bytes) -> None:
    with running.connect() as one:
        one.sendall(sent)
        begin = time.monotonic()
        one.settimeout(5)
        try:
            while one.recv(4096):
                pass
        except ConnectionResetError:
            pass  # which is an end, too
        assert 0.5 < time.monotonic() - begin < 3
    eventually(lambda: running.closed == {"slow_request": 1})


@pytest.mark.parametrize(
    "head",
    [
        b"GET /",
        b"GET /live HTTP/1.1\r\nHost: x\r\nx: ",
        b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: ",
    ],
)
def test_a_head_without_end_is_cut_off(running: Running, head: bytes) -> None:
    with running.connect() as one, pytest.raises(OSError, match=r"reset|Broken pipe"):
        one.sendall(head)
        for _ in range(64):
            one.sendall(b"a" * (1 << 20))
    eventually(lambda: running.closed == {"large_head": 1})


def test_what_is_no_http_is_counted_and_not_logged(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with running.connect() as one:
        one.sendall(b"\x16\x03\x01 geheim\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 400")
    eventually(lambda: running.closed == {"not_http": 1})
    assert caplog.text == ""


def test_large_bodies_and_small_chunks_are_no_heads(running: Running) -> None:
    chunks = (b"0123456789" for _ in range(20_000))
    with httpx.Client() as client:
        assert client.post(running.url("/length"), content=chunks).text == "200000"
        assert client.post(running.url("/length"), content=b"x" * (1 << 20)).text == str(1 << 20)
        for _ in range(100):
            assert client.get(running.url("/live"), headers={"x": "a" * 2000}).status_code == 200
        time.sleep(LIMITS.request_seconds + 0.3)  # an idle connection is no slow request
        assert client.get(running.url("/live")).status_code == 200
    assert not running.closed


def test_every_reason_is_a_metric_label() -> None:
    assert set(get_args(Reason)) == set(CLOSED_REASONS)


def test_half_of_the_files_are_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda what: (100, 100))
    assert ConnectionLimits(most=1000).most_now() == 50
    assert ConnectionLimits(most=10).most_now() == 10
    monkeypatch.setattr("resource.getrlimit", lambda what: (-1, -1))
    assert ConnectionLimits(most=1000).most_now() == 1000
