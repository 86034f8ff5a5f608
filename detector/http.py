"""The detector's HTTP side: metrics, probes, runbooks, findings, and Alertmanager's webhook."""

from __future__ import annotations

import dataclasses
import math
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ParamSpec, Protocol, TypeVar

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from detector.alerting import pages, webhook
from detector.domain.runbook import Runbook
from detector.metrics import CONTENT_TYPE, DetectorMetrics
from detector.store import AlertRow, StoredCheck, StoreError, StoreRefused

MAX_BODY = 4 * 1024 * 1024
P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger()


class WebStore(Protocol):
    """The part of the store that the endpoints need."""

    def latest_checks(self, since: datetime) -> list[StoredCheck]: ...
    def runbook(self, name: str, version: int) -> Runbook | None: ...
    def runbooks(self) -> list[Runbook]: ...
    def save_alert(self, alert: AlertRow) -> None: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """What the endpoints work on."""

    store: WebStore
    metrics: DetectorMetrics
    runbooks: Mapping[str, Runbook]
    """The shipped ones by name: they are served from memory, as on-call needs them when Postgres is down."""
    clock: Callable[[], datetime]
    alive: Callable[[], Mapping[str, str]]
    """What is broken beyond self-repair, by part; empty while the process is well."""
    missing: Callable[[], Mapping[str, str]]
    """What the detector waits for, by part; empty when it is ready."""


def build_app(backend: Backend) -> Starlette:
    """The whole HTTP interface."""

    def metrics(_: Request) -> Response:
        return Response(backend.metrics.render(), headers={"content-type": CONTENT_TYPE})

    def livez(_: Request) -> Response:
        return _health(backend.alive())

    def readyz(_: Request) -> Response:
        return _health(backend.missing())

    def index(_: Request) -> Response:
        return HTMLResponse(pages.index_page({**_stored(backend), **_shipped(backend)}.values()), headers=_HEADERS)

    def runbook(request: Request) -> Response:
        name = request.path_params["name"]
        shipped = backend.runbooks.get(name)
        version = request.path_params.get("version", shipped.version if shipped else 0)
        if shipped is not None and version == shipped.version:
            found: Runbook | None = shipped
        else:
            found = _stored(backend, must=True).get((name, version)) if version < 2**31 else None
        if found is None:
            known = ", ".join(f"/runbooks/{n}/v{r.version}" for n, r in sorted(backend.runbooks.items()))
            return PlainTextResponse(f"no runbook {name} in version {version}; there are {known}\n", 404)
        newest = max(found.version, shipped.version if shipped else 0)
        return _as_asked(request, found, newest)

    def findings(request: Request) -> Response:
        since = backend.clock() - backend.metrics.stale
        wanted = {key: request.query_params[key] for key in ("model", "version") if key in request.query_params}
        checks = [
            {"id": s.id, "model": s.model, "version": s.version, **dataclasses.asdict(s.check)}
            for s in _guarded(backend.store.latest_checks, since)
            if all(getattr(s, key) == value for key, value in wanted.items())
        ]
        return JSONResponse({"checks": _plain(checks)})

    async def alerts(request: Request) -> Response:
        try:
            received = webhook.parse(await _body(request))
        except webhook.PayloadError as error:
            log.warning("alerts.payload_refused", error=str(error))
            return JSONResponse({"error": str(error)}, 400)
        await run_in_threadpool(_save, backend, received)
        return JSONResponse({"stored": len(received)})

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/runbooks", index),
            Route("/runbooks/{name}", runbook),
            Route("/runbooks/{name}/v{version:int}", runbook),
            Route("/api/v1/findings", findings),
            Route("/api/v1/alerts", alerts, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _server_error},
    )


_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "vary": "accept"}


def _health(problems: Mapping[str, str]) -> Response:
    text = "".join(f"{part}: {problem}\n" for part, problem in sorted(problems.items()))
    return PlainTextResponse(text or "ok\n", 503 if problems else 200)


def _as_asked(request: Request, runbook: Runbook, newest: int) -> Response:
    accept = request.headers.get("accept", "*/*")
    headers = {**_HEADERS, "x-runbook-version": str(runbook.version), "etag": f'"{runbook.sha256}"'}
    if "text/markdown" in accept and "text/html" not in accept:
        return Response(runbook.body, media_type="text/markdown", headers=headers)
    # The page also tells of newer versions, so its text is not the runbook's alone.
    headers["etag"] = f'W/"{runbook.sha256}-{newest}"'
    return HTMLResponse(pages.runbook_page(runbook, newest), headers=headers)


def _shipped(backend: Backend) -> dict[tuple[str, int], Runbook]:
    return {(runbook.name, runbook.version): runbook for runbook in backend.runbooks.values()}


def _stored(backend: Backend, must: bool = False) -> dict[tuple[str, int], Runbook]:
    """Every registered version; without ``must`` an unreachable store only means fewer."""
    try:
        return {(runbook.name, runbook.version): runbook for runbook in _guarded(backend.store.runbooks)}
    except HTTPException:
        if must:
            raise
        return {}


def _guarded(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return call(*args, **kwargs)
    except StoreRefused as error:  # Trying again cannot help, and Alertmanager repeats whatever ends in 5xx.
        log.error("http.store_refused", error=str(error))
        raise HTTPException(422, "the database refuses this; the detector's log says more") from error
    except StoreError as error:
        log.error("http.store_unavailable", error=str(error))
        raise HTTPException(503, "the database does not answer; the detector's log says more") from error


def _save(backend: Backend, received: list[webhook.Received]) -> None:
    now = backend.clock()
    for alert in received:
        runbook = alert.runbook
        if runbook is not None and _guarded(backend.store.runbook, *runbook) is None:
            # Rules of another release may name a version unknown here; the annotation still keeps the URL.
            log.warning("alerts.runbook_unknown", alertname=alert.alertname, runbook=runbook)
            runbook = None
        row = AlertRow(
            fingerprint=alert.fingerprint,
            alertname=alert.alertname,
            status=alert.status,
            severity=alert.about("severity"),
            model=alert.about("model"),
            version=alert.about("version"),
            layer=alert.about("layer"),
            cause=alert.about("cause"),
            starts_at=alert.starts_at,
            ends_at=alert.ends_at,
            labels=alert.labels,
            annotations=alert.annotations,
            runbook_name=runbook[0] if runbook else None,
            runbook_version=runbook[1] if runbook else None,
            received_at=now,
        )
        _guarded(backend.store.save_alert, row)
        backend.metrics.alert_received(alert.alertname, alert.status)
        log.info("alerts.stored", alertname=alert.alertname, status=alert.status, model=row.model, version=row.version)


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
    except ClientDisconnect:
        raise webhook.PayloadError("the connection ended within the body") from None
    return bytes(body)


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN: null instead."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.isoformat() if isinstance(value, datetime) else value


def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _server_error(request: Request, error: Exception) -> Response:
    log.error("http.request_failed", path=request.url.path, error=repr(error))
    return JSONResponse({"error": "internal error; the detector's log says more"}, 500)


class HttpServer:
    """uvicorn in a thread of its own; the port is taken at once, so that a busy one is an error at start-up."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=128)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    @property
    def serving(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def stop(self, timeout: float = 10.0) -> None:
        """Finishes running requests, for ``timeout`` seconds at most, then closes."""
        self._server.should_exit = True
        self._thread.join(timeout)
        self._socket.close()
