from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from detector.alerting.runbooks import parse
from detector.domain.runbook import Runbook
from detector.http import MAX_BODY, Backend, HttpServer, build_app
from detector.metrics import DetectorMetrics
from detector.store import StoredCheck, StoreRefused, StoreUnavailable
from tests.detector.alerting.test_runbooks import SHIPPED, TEXT
from tests.detector.samples import NOW, MemoryStore, check, finding

NAME = "ReluscopeDeadNeurons"
MARKDOWN = {"accept": "text/markdown"}


class Stage:
    def __init__(self) -> None:
        self.store = MemoryStore(books={(book.name, book.version): book for book in SHIPPED})
        self.shipped = {book.name: book for book in SHIPPED}
        self.problems: dict[str, str] = {}
        self.waits: dict[str, str] = {}
        self.metrics = DetectorMetrics(lambda: NOW, 3600.0, list(self.shipped))
        backend = Backend(
            self.store, self.metrics, self.shipped, lambda: NOW, lambda: self.problems, lambda: self.waits
        )
        self.app = build_app(backend)
        self.client = TestClient(self.app)

    def older(self, text: str = "older words") -> Runbook:
        """Makes the shipped version 2, and another text the registered version 1."""
        newest = self.shipped[NAME]
        body = newest.body.replace("version: 1", "version: 2")
        self.shipped[NAME] = parse(body, NAME)
        old = parse(TEXT.replace("ReluscopeSample", NAME).replace("\nm\n", f"\n{text}\n"), NAME)
        self.store.books[NAME, 1] = old
        return old


@pytest.fixture
def stage() -> Stage:
    return Stage()


def payload(**changes: Any) -> dict[str, Any]:
    """What Alertmanager 0.25 sent for the shipped rule, shortened to one alert."""
    alert = {
        "status": "firing",
        "labels": {
            "alertname": NAME, "cause": "dead_neurons", "model": "digits", "severity": "critical", "version": "2",
        },
        "annotations": {
            "description": "Channels that were active in the reference no longer activate for any request.",
            "layer": "relu2",
            "runbook_url": f"http://reluscope-detector:8500/runbooks/{NAME}/v1",
            "summary": "digits version 2: neurons died, up to 9 in one layer",
        },
        "startsAt": "2026-01-31T11:58:07.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus:9090/graph?g0.expr=up&g0.tab=1",
        "fingerprint": "c0a1b2d3e4f50617",
    }  # fmt: skip
    return {
        "receiver": "page",
        "status": "firing",
        "alerts": [{**alert, **changes}],
        "groupLabels": {"alertname": NAME},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "version": "4",
        "groupKey": '{}/{severity="critical"}:{}',
        "truncatedAlerts": 0,
    }


def test_an_alert_is_stored_pinned_to_the_version_in_its_url(stage: Stage) -> None:
    response = stage.client.post("/api/v1/alerts", json=payload())
    assert (response.status_code, response.json()) == (200, {"stored": 1})
    (row,) = stage.store.saved
    assert (row.runbook_name, row.runbook_version) == (NAME, 1)
    assert (row.alertname, row.severity, row.model, row.version, row.layer, row.cause) == (
        NAME, "critical", "digits", "2", "relu2", "dead_neurons",
    )  # fmt: skip
    assert row.starts_at == datetime(2026, 1, 31, 11, 58, 7, 123456, UTC)
    assert row.ends_at is None
    assert row.received_at == NOW
    assert 'reluscope_alerts_received_total{alertname="ReluscopeDeadNeurons",status="firing"} 1.0' in (
        stage.client.get("/metrics").text
    )


def test_the_pin_is_the_alerts_and_not_the_newest(stage: Stage) -> None:
    stage.older()
    stage.client.post("/api/v1/alerts", json=payload())
    assert stage.store.saved[0].runbook_version == 1


def test_a_resolution_has_its_end(stage: Stage) -> None:
    response = stage.client.post("/api/v1/alerts", json=payload(status="resolved", endsAt="2026-01-31T13:00:00+01:00"))
    assert response.status_code == 200
    assert stage.store.saved[0].ends_at == NOW


@pytest.mark.parametrize("url", [f"http://host/runbooks/{NAME}/v7", "http://host/elsewhere", None])
def test_alerts_with_an_unknown_runbook_are_kept_without_a_pin(stage: Stage, url: str | None) -> None:
    annotations = {} if url is None else {"runbook_url": url}
    assert stage.client.post("/api/v1/alerts", json=payload(annotations=annotations)).status_code == 200
    (row,) = stage.store.saved
    assert (row.runbook_name, row.runbook_version, row.layer) == (None, None, None)
    assert row.annotations == annotations


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "expected an object, got list"),
        (b"{}", "alerts: expected a list, got nothing"),
        (b'{"alerts": [], "version": "3"}', "version: expected '4'"),
        (b'{"alerts": [1]}', "alerts[0]: expected an object, got int"),
        (b'{"alerts": [{}]}', "alerts[0].labels: expected an object, got nothing"),
        (b'{"alerts": [' + b"{}," * 10_000 + b"{}]}", "are more than 10000"),
    ],
)
def test_a_malformed_payload_is_refused_with_its_fault(stage: Stage, body: bytes, message: str) -> None:
    response = stage.client.post("/api/v1/alerts", content=body)
    assert response.status_code == 400
    assert message in response.json()["error"]
    assert stage.store.saved == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {}}, "alerts[0].labels.alertname: missing"),
        ({"labels": {"alertname": 1}}, "alerts[0].labels.alertname: expected a string, got int"),
        ({"annotations": ["x"]}, "alerts[0].annotations: expected an object"),
        ({"annotations": {"a": "\0"}}, "holds a NUL character"),
        ({"annotations": {"a": "\ud800"}}, "half a surrogate pair"),
        ({"status": "burning"}, "alerts[0].status: expected 'firing' or 'resolved', got 'burning'"),
        ({"startsAt": None}, "alerts[0].startsAt: expected an RFC 3339 time, got nothing"),
        ({"startsAt": "yesterday"}, "alerts[0].startsAt: expected an RFC 3339 time, got 'yesterday'"),
        ({"startsAt": "2026-01-31T11:58:07"}, "no time zone"),
        ({"startsAt": "0001-01-01T00:00:00+14:00"}, "alerts[0].startsAt"),
        ({"status": "resolved", "endsAt": ""}, "alerts[0].endsAt"),
        ({"fingerprint": ""}, "alerts[0].fingerprint"),
        ({"fingerprint": "a" * 65}, "alerts[0].fingerprint"),
    ],
)
def test_a_malformed_alert_is_refused_with_its_place(stage: Stage, changes: dict[str, Any], message: str) -> None:
    sound = payload()
    sound["alerts"].insert(1, payload(**changes)["alerts"][0])
    response = stage.client.post("/api/v1/alerts", content=json.dumps(sound))
    assert response.status_code == 400
    assert message.replace("alerts[0]", "alerts[1]") in response.json()["error"]
    assert stage.store.saved == []


def test_a_body_too_large_and_a_wrong_method_are_told(stage: Stage) -> None:
    response = stage.client.post("/api/v1/alerts", content=b" " * (MAX_BODY + 1))
    assert response.status_code == 413
    assert "larger than" in response.json()["error"]
    assert stage.client.get("/api/v1/alerts").status_code == 405
    assert stage.client.get("/nothing").json() == {"error": "Not Found"}


def test_alertmanager_is_asked_to_repeat_only_what_may_succeed(stage: Stage) -> None:
    stage.store.down = StoreUnavailable("secret details")
    response = stage.client.post("/api/v1/alerts", json=payload())
    assert response.status_code == 503
    assert "secret" not in response.text
    stage.store.down = StoreRefused("secret details")
    assert stage.client.post("/api/v1/alerts", json=payload()).status_code == 422


def test_runbook_as_page_and_as_markdown(stage: Stage) -> None:
    page = stage.client.get(f"/runbooks/{NAME}/v1")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<h1>{NAME}</h1>" in page.text
    assert "<h2>Mitigation</h2>" in page.text
    assert "severity: critical" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    text = stage.client.get(f"/runbooks/{NAME}/v1", headers=MARKDOWN)
    assert text.headers["content-type"].startswith("text/markdown")
    assert text.text == stage.shipped[NAME].body


def test_an_older_version_is_served_as_it_was_and_names_the_newer(stage: Stage) -> None:
    stage.older("words with <script>alert(1)</script>")
    old = stage.client.get(f"/runbooks/{NAME}/v1").text
    assert f'<a href="/runbooks/{NAME}/v2">version 2</a>' in old
    assert "<script>" not in old
    assert "words with &lt;script&gt;" in old
    newest = stage.client.get(f"/runbooks/{NAME}")
    assert newest.headers["x-runbook-version"] == "2"
    assert f"/runbooks/{NAME}/v1" in stage.client.get("/runbooks").text


def test_runbooks_are_served_while_postgres_is_down(stage: Stage) -> None:
    stage.store.down = StoreUnavailable("gone")
    assert stage.client.get(f"/runbooks/{NAME}/v1").status_code == 200
    assert NAME in stage.client.get("/runbooks").text
    assert stage.client.get(f"/runbooks/{NAME}/v9").status_code == 503


@pytest.mark.parametrize("path", [f"{NAME}/v9", "ReluscopeNone", "ReluscopeNone/v1", f"{NAME}/v99999999999999"])
def test_an_unknown_runbook_is_404_and_lists_what_there_is(stage: Stage, path: str) -> None:
    response = stage.client.get(f"/runbooks/{path}")
    assert response.status_code == 404
    assert f"/runbooks/{NAME}/v1" in response.text


def test_findings_are_json_without_infinities(stage: Stage) -> None:
    stage.store.stored = [
        StoredCheck(1, "digits", "2", check(1, finding())),
        StoredCheck(2, "other", "1", check(2)),
    ]
    everything = stage.client.get("/api/v1/findings").json()["checks"]
    assert [one["model"] for one in everything] == ["digits", "other"]
    (only,) = stage.client.get("/api/v1/findings", params={"model": "digits"}).json()["checks"]
    assert only["findings"][0]["layer"] == "relu2"
    assert only["findings"][0]["effect"] is None
    assert only["finished_at"] == NOW.isoformat()
    stage.store.down = StoreUnavailable("gone")
    assert stage.client.get("/api/v1/findings").status_code == 503


def test_probes_say_what_is_wrong(stage: Stage) -> None:
    assert stage.client.get("/livez").text == stage.client.get("/readyz").text == "ok\n"
    stage.waits = {"database": "refused"}
    stage.problems = {"ingest": "the thread has ended"}
    ready, live = stage.client.get("/readyz"), stage.client.get("/livez")
    assert (ready.status_code, ready.text) == (503, "database: refused\n")
    assert (live.status_code, live.text) == (503, "ingest: the thread has ended\n")


@pytest.fixture
def server(stage: Stage) -> Iterator[HttpServer]:
    server = HttpServer(stage.app, "127.0.0.1", 0)
    server.start()
    yield server
    server.stop()


def test_the_server_answers_and_stops(server: HttpServer) -> None:
    assert httpx.get(f"http://127.0.0.1:{server.port}/livez").text == "ok\n"
    with pytest.raises(OSError, match="in use"):
        HttpServer(Stage().app, "127.0.0.1", server.port)
    server.stop()
    assert not server.serving
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
        pass
