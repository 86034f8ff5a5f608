"""What becomes of stored alerts that Alertmanager sends no notices of, and what its client makes of its answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.local.postgres import psycopg_url
from detector.alerting.alertmanager import Alertmanager, AlertmanagerError, LiveAlert, Silence
from detector.alerting.reconcile import reconcile, settle_all
from detector.domain.holds import Hold, OpenAlert, Settled
from detector.store import AlertRow, Store

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
STORED = OpenAlert(7, "f1", "ReluscopeInputShift", "firing", NOW - 9 * MINUTE, "", ())
LIVE = LiveAlert("f1", "ReluscopeInputShift", STORED.starts_at, (), ())
SILENCE = Silence("s1", "ada", "known, ticket 12")


def settle(stored: OpenAlert, *live: LiveAlert, knows_all: bool = True) -> list[Settled]:
    return settle_all([stored], live, {"s1": SILENCE}, NOW, knows_all=knows_all)


def test_an_alert_that_is_gone_has_ended_once_alertmanager_knows_all() -> None:
    assert settle(STORED, replace(LIVE, fingerprint="f2")) == [Settled(7, NOW, None, "", ())]
    assert settle(STORED, knows_all=False) == []


def test_what_holds_an_alert_back_is_kept_for_ever_and_once() -> None:
    silence = Hold("silence", "s1", "ada", "known, ticket 12", NOW)
    [silenced] = settle(STORED, replace(LIVE, silenced_by=("s1",)))
    assert silenced == Settled(7, None, NOW, "silenced", (silence,))
    earlier = replace(silence, since=NOW - MINUTE)
    cause = replace(LIVE, fingerprint="f9", alertname="ReluscopeDeadNeurons")
    [inhibited] = settle(replace(STORED, holds=(earlier,)), replace(LIVE, inhibited_by=("f9",)), cause)
    assert inhibited.held_back == "inhibited"
    assert inhibited.holds == (earlier, Hold("inhibition", "f9", "ReluscopeDeadNeurons", "", NOW))
    [free] = settle(replace(STORED, held_back="silenced", holds=(earlier,)), LIVE)
    assert (free.held_back, free.holds) == ("", (earlier,))
    [ended] = settle(replace(STORED, held_back="silenced", holds=(earlier,)))
    assert (ended.ends_at, ended.held_back, ended.holds) == (NOW, "", (earlier,))


def test_the_same_labels_with_a_later_start_are_another_alert() -> None:
    again = replace(LIVE, starts_at=NOW - 2 * MINUTE)
    assert settle(STORED, again, knows_all=False) == [Settled(7, again.starts_at, None, "", ())]
    rounded = replace(LIVE, starts_at=STORED.starts_at + timedelta(microseconds=900))
    assert [one.ends_at for one in settle(STORED, rounded)] == [None]


def test_what_was_ended_by_mistake_fires_again() -> None:
    ended = replace(STORED, status="resolved")
    assert settle(ended) == []
    assert settle(ended, LIVE) == [Settled(7, None, NOW, "", ())]
    assert settle(ended, replace(LIVE, starts_at=NOW)) == []


class Source:
    """Answers as an Alertmanager that started an hour ago."""

    def __init__(self, *live: LiveAlert) -> None:
        self.live, self.asked = list(live), list[set[str]]()

    def started_at(self) -> datetime:
        return NOW - timedelta(hours=1)

    def alerts(self, names: set[str]) -> list[LiveAlert]:
        self.asked.append(names)
        return self.live

    def silences(self) -> dict[str, Silence]:
        return {"s1": SILENCE}


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


def notice(status: str = "firing", at: datetime = STORED.starts_at, **changes: Any) -> AlertRow:
    base = AlertRow(
        "f1", "ReluscopeInputShift", status, "warning", "digits", "1", None, None, STORED.starts_at,
        None if status == "firing" else at, {}, {}, None, None, at,
    )  # fmt: skip
    return replace(base, **changes)


def timeline(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(psycopg_url(url)) as connection:
        query = "SELECT status, state, ended_by, ends_at, jsonb_array_length(holds) FROM alert_timeline"
        return connection.execute(query).fetchall()


def test_rows_end_stay_ended_and_come_back(store: Store, database_url: str) -> None:
    settled = timedelta(minutes=5)
    assert reconcile(store, Source(), NOW, settled) == []  # nothing open: nothing is asked
    store.save_alert(notice())
    silenced = Source(replace(LIVE, silenced_by=("s1",)))
    reconcile(store, silenced, datetime.now(UTC), settled)
    assert silenced.asked == [{"ReluscopeInputShift"}]
    assert timeline(database_url) == [("firing", "silenced", None, None, 1)]
    reconcile(store, Source(), NOW, settled)
    assert timeline(database_url) == [("resolved", "resolved", "reconciled", NOW, 1)]
    assert store.open_alerts(NOW + MINUTE) == []
    # Alertmanager had forgotten it, and tells of it anew.
    store.save_alert(notice(at=datetime.now(UTC)))
    assert timeline(database_url) == [("firing", "firing", None, None, 1)]
    store.save_alert(notice("resolved", NOW + MINUTE))
    reconcile(store, Source(LIVE), NOW, settled)  # which lags behind its own notice
    assert timeline(database_url) == [("resolved", "resolved", "webhook", NOW + MINUTE, 1)]
    store.save_alert(notice())
    assert timeline(database_url)[0][0] == "resolved"


def test_without_reconciliation_what_was_not_heard_of_for_a_day_is_unknown(store: Store, database_url: str) -> None:
    store.save_alert(notice(at=datetime.now(UTC) - timedelta(hours=24)))
    assert timeline(database_url)[0][:2] == ("firing", "firing")
    store.save_alert(notice(at=datetime.now(UTC) - timedelta(hours=26)))
    assert timeline(database_url)[0][:2] == ("firing", "unknown")


class Answers(BaseHTTPRequestHandler):
    """One answer to everything, and what was asked."""

    status, body, location = 200, b"[]", ""
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        type(self).asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.status)
        if self.location:
            self.send_header("Location", self.location)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *_: Any) -> None:
        assert format


@pytest.fixture
def answers() -> Iterator[tuple[str, type[Answers]]]:
    handler = type("One", (Answers,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_credentials_are_sent_as_the_file_has_them_and_to_nobody_else(
    answers: tuple[str, type[Answers]], tmp_path: Path
) -> None:
    url, handler = answers
    secret = tmp_path / "authorization"
    source = Alertmanager(f"{url}/alertmanager/", secret)
    secret.write_text("Bearer one\n")
    assert source.alerts({"A", "B"}) == []
    secret.write_text("Basic two\n")
    handler.status, handler.location = 302, f"{url}/elsewhere"
    with pytest.raises(AlertmanagerError, match=r"GET http.*/alertmanager/api/v2/silences: status 302"):
        source.silences()
    assert handler.asked == [
        ("/alertmanager/api/v2/alerts?filter=alertname%3D~%22A%7CB%22", "Bearer one"),
        ("/alertmanager/api/v2/silences", "Basic two"),
    ]
    secret.unlink()
    with pytest.raises(AlertmanagerError, match="No such file"):
        source.alerts({"A"})


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (503, b"", "status 503"),
        (200, b"<html>", "not JSON"),
        (200, b"{}", "alerts is no list"),
        (200, b"[{}]", "no status"),
        (200, json.dumps([{"status": {}, "labels": {}, "fingerprint": "f", "startsAt": "now"}]).encode(), "'now'"),
    ],
)
def test_an_odd_answer_is_named(answers: tuple[str, type[Answers]], status: int, body: bytes, message: str) -> None:
    url, handler = answers
    handler.status, handler.body = status, body
    with pytest.raises(AlertmanagerError, match=message):
        Alertmanager(url).alerts({"A"})


def test_no_answer_at_all_is_an_error_and_odd_urls_are_refused() -> None:
    with pytest.raises(AlertmanagerError, match=r"GET http://127\.0\.0\.1:9/api/v2/status: .*refused"):
        Alertmanager("http://127.0.0.1:9").started_at()
    for url in ("alertmanager:9093", "file:///etc/passwd", "http://me:hush@host"):
        with pytest.raises(ValueError, match="is no URL such as") as refused:
            Alertmanager(url)
        assert "hush" not in str(refused.value)
