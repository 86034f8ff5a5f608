"""The detector's process: it says what it waits for, starts when that is there, and stops when it is told."""

from __future__ import annotations

import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from deploy.local.broker import Broker
from deploy.local.ports import free_port
from detector.domain.runbook import Runbook
from detector.migrate import upgrade
from detector.store import Store

PROGRAM = Path(sysconfig.get_path("scripts")) / "reluscope"


def eventually(true: Callable[[], bool], seconds: float = 30) -> None:
    """Waits until ``true()``; a refused connection is not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@contextmanager
def detector(log: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A detector on a free port, and its URL; killed at the end if it still runs."""
    port = free_port()
    command = [str(PROGRAM), "detector", "--port", str(port), "--log-format", "json", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def test_waits_for_schema_and_broker_and_says_so(empty_database_url: str, tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    log = tmp_path / "detector.log"
    with detector(log, "--database-url", empty_database_url, "--bootstrap-servers", nowhere) as (process, url):
        eventually(lambda: "database: " in (text := httpx.get(f"{url}/readyz").text) and "reluscope migrate" in text)
        assert httpx.get(f"{url}/livez").status_code == 200
        assert httpx.get(f"{url}/runbooks/ReluscopeDeadNeurons/v1").status_code == 200
        upgrade(empty_database_url)
        eventually(lambda: httpx.get(f"{url}/readyz").text.startswith(f"broker: no Kafka broker answers ({nowhere}"))
        # Checks and metrics need no broker.
        eventually(lambda: "reluscope_runbook_info{" in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    said = log.read_text()
    assert said.count('"part": "database"') < 5
    assert '"event": "service.stopped"' in said


def test_becomes_ready_registers_runbooks_and_stops_on_a_signal(
    database_url: str, broker: Broker, topic: str, tmp_path: Path
) -> None:
    options = ("--database-url", database_url, *broker.options(), "--topic", topic)
    with detector(tmp_path / "detector.log", *options) as (process, url):
        eventually(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        store = Store(database_url)
        assert {book.name for book in store.runbooks()} >= {"ReluscopeDeadNeurons", "ReluscopeTelemetryGap"}
        store.close()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 15


def test_refuses_to_start_where_a_runbook_changed_without_a_version(
    database_url: str, broker: Broker, tmp_path: Path
) -> None:
    store = Store(database_url)
    store.register_runbook(Runbook("ReluscopeDeadNeurons", 1, "0" * 64, "other words", "critical", "x", "y"))
    store.close()
    log = tmp_path / "detector.log"
    with detector(log, "--database-url", database_url, *broker.options()) as (process, _):
        assert process.wait(20) == 1
    assert "the text changed, but it still says version: 1" in log.read_text()


def test_what_can_never_work_is_an_error_at_once(tmp_path: Path) -> None:
    log = tmp_path / "detector.log"
    for options, code, message in (
        (("--database-url", "mysql://me:hush@db/x"), 1, "expected postgresql+psycopg://"),
        (("--database-url", "postgresql+psycopg://me:hush@db/x", "--fdr", "2"), 2, "'--fdr': 2.0 is not in the range"),
        (("--database-url", "postgresql+psycopg://db/x", "--host", "192.0.2.1"), 1, "cannot listen on 192.0.2.1:"),
    ):
        with detector(log, "--bootstrap-servers", "127.0.0.1:9", *options) as (process, _):
            assert process.wait(20) == code
        assert message in log.read_text()
        assert "hush" not in log.read_text()
