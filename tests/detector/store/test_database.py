"""The connections to Postgres, on a real one."""

from __future__ import annotations

import socket

import psycopg
import pytest

from deploy.local.postgres import psycopg_url
from detector.store.database import Database


@pytest.mark.parametrize(("query", "idle"), [("", 15), ("?keepalives_idle=77", 77)])
def test_a_server_that_vanished_is_noticed_within_half_a_minute(database_url: str, query: str, idle: int) -> None:
    database = Database(database_url + query)
    with database.begin() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        end = socket.socket(fileno=raw.fileno())
        try:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        finally:
            end.detach()
    database.close()


def test_the_release_before_goes_on_writing_alerts_beside_this_one(database_url: str) -> None:
    """During an upgrade the schema is new, and detectors that know nothing of its columns still serve."""
    with psycopg.connect(psycopg_url(database_url)) as connection:
        connection.execute(
            "INSERT INTO alerts (fingerprint, alertname, status, severity, model, version, layer, cause, starts_at, "
            "labels, annotations, received_at) VALUES ('f', 'a', 'firing', '', '', '', '', '', now(), '{}', '{}', "
            "now())"
        )
        row = connection.execute("SELECT state, seen_at <= now() FROM alert_timeline").fetchone()
    assert row == ("firing", True)
