from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator

import pytest
import structlog

from agent.intake.tensors import OipError
from agent.logging import Format, configure, redact_text


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql+psycopg://me:hush@db:5432/x", "postgresql+psycopg://me:***@db:5432/x"),
        ("https://:hush@host", "https://:***@host"),
        ("host=db password=hush user=me", "host=db password=*** user=me"),
        ("password='a b' user=me", "password=*** user=me"),
        ("https://host:8500/runbooks?x=a@b", "https://host:8500/runbooks?x=a@b"),
    ],
)
def test_redact_text(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted


def test_json_lines_hold_no_secret_wherever_it_stands(stream: io.StringIO) -> None:
    configure("json", stream=stream)
    log = structlog.get_logger("sample")
    log.info("sample.said", url="postgresql://me:hush@db/x", password="hush", nested={"token": "hush", "n": [1.5]})
    logging.getLogger("third.party").warning("cannot reach %s", "postgresql://me:hush@db/x")
    try:
        raise ValueError("postgresql://me:hush@db/x")
    except ValueError:
        log.exception("sample.failed")
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["event"] for one in said[:1]] == ["sample.said"]
    assert said[0]["nested"] == {"token": "***", "n": [1.5]}
    assert said[1]["event"] == "cannot reach postgresql://me:***@db/x"
    assert "ValueError" in said[2]["exception"]
    assert "hush" not in stream.getvalue()


CANARY = "canary"
"""Of an exception's text; not written where it is raised, for tracebacks show the source."""


def failing(error: Exception) -> None:
    try:
        raise OipError("data", "input 'x': data beyond INT32")
    except OipError:
        raise error from None


@pytest.mark.parametrize("format", ["json", "console"])
def test_an_agents_log_has_tracebacks_without_the_texts_of_libraries(
    stream: io.StringIO, format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    configure(format, stream=stream, exception_texts=False)
    log = structlog.get_logger("sample")
    try:
        try:
            raise ValueError(CANARY)
        except ValueError as error:
            raise OipError("shape", "input 'x' has shape [1]") from error
    except OipError:
        log.exception("sample.failed")
    try:
        raise ExceptionGroup(CANARY, [KeyError(CANARY)])
    except ExceptionGroup:
        logging.getLogger("uvicorn.error").exception("in a library")
    thread = threading.Thread(target=failing, args=(OverflowError(CANARY),))
    thread.start()
    thread.join()
    sys.excepthook(*_info(RuntimeError(CANARY)))
    text = stream.getvalue()
    assert CANARY not in text
    for said in ("builtins.ValueError (text left out)", "OipError: input 'x' has shape [1]", "builtins.KeyError",
                 "builtins.OverflowError", "builtins.RuntimeError", "process.uncaught", "in failing"):  # fmt: skip
        assert said in text, said


def _info(error: Exception) -> tuple[type[Exception], Exception, None]:
    return type(error), error, None


def test_console_lines_and_levels(stream: io.StringIO) -> None:
    configure("console", level="warning", stream=stream)
    structlog.get_logger().info("sample.quiet")
    structlog.get_logger().warning("sample.loud", n=1)
    assert "sample.loud" in stream.getvalue()
    assert "sample.quiet" not in stream.getvalue()
