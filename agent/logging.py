"""Logging of agents and detectors: structured events, one per line, without secrets.

An agent's log is without request values too: exceptions of libraries may quote them, so their texts are left out.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, MutableMapping
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog

Format = Literal["json", "console"]
_URL_PASSWORD = re.compile(r"(?P<head>[a-z][a-z0-9+.-]*://[^\s:/@]*):(?P<secret>[^\s/]+)@", re.IGNORECASE)
_ASSIGNED = re.compile(r"(?P<head>\b(?:password|sslpassword|token|secret)\s*=\s*)(?:'[^']*'|[^\s&,;]+)", re.IGNORECASE)
_SECRET_KEY = re.compile(r"password|passwd|secret|token|authorization|api_?key", re.IGNORECASE)


def redact_text(text: str) -> str:
    """``text`` with passwords in URLs and connection strings masked."""
    return _ASSIGNED.sub(r"\g<head>***", _URL_PASSWORD.sub(r"\g<head>:***@", text))


def _redact_value(key: str, value: Any) -> Any:
    if _SECRET_KEY.search(key):
        return "***"
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {k: _redact_value(str(k), v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact_value("", item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return redact_text(str(value))


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor that masks secrets by key and by content; runs behind the formatting of exceptions."""
    for key, value in event.items():
        if not key.startswith("_"):
            event[key] = _redact_value(key, value)
    return event


def without_texts(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor that writes a traceback with each exception's type, and its text only where that is safe.

    Safe are the texts of the agent's own exceptions, which name no values, and the operating system's.
    """
    found = event.pop("exc_info", None)
    error = sys.exc_info()[1] if found is True else found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["exception"] = "\n".join(_traced(error))
    return event


def _traced(error: BaseException) -> Iterator[str]:
    """An exception and those that led to it, the first cause first."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _traced(before)
        yield "which led to"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    kind = type(error)
    yield f"{kind.__module__}.{kind.__qualname__}" + (f": {error}" if _is_safe(error) else " (text left out)")
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _traced(member)


def _is_safe(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "agent" or isinstance(error, OSError)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """What Python would print with its text goes the way of all events; an interrupt stays Python's."""
    if error is None or issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), trace)
    elif not issubclass(kind, SystemExit):  # which ends a thread without a word
        structlog.get_logger().critical("process.uncaught", exc_info=error)


def configure(
    format: Format = "json", level: str = "info", stream: TextIO | None = None, *, exception_texts: bool = True
) -> None:
    """Sends structlog and the standard library's logging to ``stream`` (stderr) in one format.

    Without ``exception_texts`` no exception's text is logged that could hold request values, caught or not.
    """
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    out = stream or sys.stderr
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer(default=str)
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=out.isatty())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info if exception_texts else without_texts,
                redact,
                renderer,
            ],
        )
    )
    if not exception_texts:
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda told: _log_uncaught(told.exc_type, told.exc_value, told.exc_traceback)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These tell at INFO what our own events already say; kafka reports every attempt to reach a broker as an error.
    for noisy in ("apscheduler", "uvicorn", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
