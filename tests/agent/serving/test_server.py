"""The server is asked over real HTTP; what it cannot say changes nothing, and never keeps anybody waiting for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from agent.metrics import AgentMetrics
from agent.serving.server import Server, ServerError, ServerWatch, read_index
from agent.serving.versions import ServerAnswer
from tests.agent.serving.triton import INDEX, FakeServer

MODELS = ["digits", "cold"]
READY = ServerAnswer({"cold": (), "digits": ("1", "2"), "broken": ()})


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture
def url(fake: FakeServer) -> Iterator[str]:
    with fake.running() as url:
        yield url


def test_tritons_index_says_what_is_ready(fake: FakeServer, url: str) -> None:
    fake.has_index()
    assert Server(url, 2.0).ask(MODELS, None) == READY
    assert fake.asked == [("POST /v2/repository/index", b"{}")]


def test_a_server_without_an_index_is_asked_model_by_model(fake: FakeServer, url: str) -> None:
    fake.has_no_index({"1": 200, "2": 400, "3": 200})
    assert Server(url + "/", 2.0).ask(MODELS, None) == ServerAnswer({"digits": ("1", "3")})
    assert [path for path, _ in fake.asked] == [
        "POST /v2/repository/index",
        "GET /v2/models/cold",
        "GET /v2/models/digits",
        *(f"GET /v2/models/digits/versions/{version}/ready" for version in (1, 2, 3)),
    ]


def test_a_server_that_does_not_say_its_versions_says_nothing(fake: FakeServer, url: str) -> None:
    for body in (b'{"name":"digits","platform":"x"}', b'{"name":"digits","versions":[]}', b'{"versions":["blue"]}'):
        fake.answers = {"GET /v2/models/digits": (200, body)}
        assert Server(url, 2.0).ask(["digits"], None) == ServerAnswer({})


def test_while_a_model_is_being_loaded_its_last_versions_stand() -> None:
    loading = b'[{"name":"digits","version":"2","state":"LOADING"},{"name":"new","version":"1","state":"LOADING"}]'
    assert read_index(loading, READY) == ServerAnswer({"digits": ("1", "2")})
    assert read_index(loading) == ServerAnswer({})
    half = b'[{"name":"digits","version":"1","state":"READY"},{"name":"digits","version":"2","state":"LOADING"}]'
    assert read_index(half, READY) == ServerAnswer({"digits": ("1",)})


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"<html>", "no JSON"),
        (200, b"{}", "no array"),
        (200, b"[1]", "no object with a name"),
        (200, b'[{"version":"1","state":"READY"}]', "no object with a name"),
        (200, INDEX[:50], "no JSON"),
        (200, b"[" + b" " * (4 << 20) + b"]", "more than"),
        (500, b"", "answers 500"),
        (401, b"", "answers 401"),
    ],
)
def test_garbage_is_named(fake: FakeServer, url: str, status: int, body: bytes, reason: str) -> None:
    fake.answers["POST /v2/repository/index"] = status, body
    with pytest.raises(ServerError, match=reason):
        Server(url, 2.0).ask(MODELS, READY)


@pytest.mark.parametrize(("delay", "drip"), [(2.0, 0.0), (0.0, 0.05)])
def test_a_slow_answer_is_not_waited_for(fake: FakeServer, url: str, delay: float, drip: float) -> None:
    fake.has_index()
    fake.delay, fake.drip = delay, drip
    begin = time.monotonic()
    with pytest.raises(ServerError, match=r"no answer within 0.3 seconds"):
        Server(url, 0.3).ask(MODELS, None)
    assert time.monotonic() - begin < 1.5


def test_a_url_that_is_none_is_refused() -> None:
    for url in ("localhost:8000", "ftp://x", "http://"):
        with pytest.raises(ValueError, match="no http:// or https:// URL"):
            Server(url, 1.0)


def test_the_last_answer_stands_while_the_server_cannot_be_asked_and_it_is_said_once() -> None:
    fake, metrics, now = FakeServer(), AgentMetrics(), [1000.0]
    value = metrics.registry.get_sample_value
    with fake.running() as url:
        fake.has_index()
        watch = ServerWatch(Server(url, 1.0), metrics, lambda: MODELS, 5.0, lambda: now[0])
        with capture_logs() as logs:
            watch.ask()
            watch.ask()
            fake.answers["POST /v2/repository/index"] = 200, b"garbage"
            watch.ask()
    with capture_logs() as gone:
        watch.ask()  # nobody listens any more
    assert watch.answer == READY
    assert [one["event"] for one in logs] == ["server.answers", "server.no_answer"]
    assert logs[1]["observed_by"] == "the last answer"
    assert gone == []
    assert value("reluscope_agent_server_answers_total", {"result": "ok"}) == 2
    assert value("reluscope_agent_server_answers_total", {"result": "failed"}) == 2
    assert value("reluscope_agent_last_server_answer_timestamp_seconds") == 1000
    with fake.running(), capture_logs() as back:  # at the same port
        fake.has_index(b'[{"name":"digits","version":"2","state":"READY"}]')
        watch.ask()
    assert watch.answer == ServerAnswer({"digits": ("2",)})
    assert [one["event"] for one in back] == ["server.answers"]


def test_the_watch_asks_in_its_own_thread_until_it_is_stopped(fake: FakeServer, url: str) -> None:
    fake.has_index()
    watch = ServerWatch(Server(url, 1.0), AgentMetrics(), lambda: MODELS, 0.02)
    stop = threading.Event()
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()
    watch.wait(5)
    assert watch.answer == READY
    deadline = time.monotonic() + 5
    while len(fake.asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert not thread.is_alive() and len(fake.asked) >= 3


def test_a_url_that_is_none_is_told_without_its_password() -> None:
    with pytest.raises(ValueError, match=r"htp://me:\*\*\*@server:8000' is no http"):
        Server("htp://me:geheim@server:8000", 1.0)
