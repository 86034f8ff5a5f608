"""From a finding in Postgres to Alertmanager and back into Postgres, through the shipped rules and routes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest
import yaml

from agent.summary import empty
from agent.wire import Deployment, Envelope, Probe, ProbeWindow, Window
from deploy.local.postgres import psycopg_url
from deploy.local.prometheus import alertmanager, prometheus
from detector import resources
from detector.alerting import rules, runbooks
from detector.alerting.alertmanager import Alertmanager
from detector.alerting.reconcile import reconcile
from detector.domain.finding import Finding
from detector.http import Backend, HttpServer, build_app
from detector.metrics import DetectorMetrics
from detector.store import AlertRow, Store
from tests.detector.samples import check, finding
from tests.integration.test_detector_service import eventually

ROUTES = Path(__file__).parents[2] / "deploy" / "alertmanager" / "alertmanager.yml"
BOOKS = {book.name: book for book in runbooks.load(resources.runbooks())}


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


@pytest.fixture
def detector(store: Store) -> Iterator[tuple[HttpServer, DetectorMetrics]]:
    metrics = DetectorMetrics(now, 3600.0, list(BOOKS))
    server = HttpServer(build_app(Backend(store, metrics, BOOKS, now, dict, dict)), "127.0.0.1", 0)
    server.start()
    yield server, metrics
    server.stop()


def observe(store: Store) -> int:
    """One deployed model version with one window; its id."""
    end = now()
    probe = Probe("relu2", "Relu", "relu2_out", 8, 1, "activation", 3, True)
    window = Window(
        int((end - timedelta(minutes=1)).timestamp() * 1000),
        int(end.timestamp() * 1000),
        (ProbeWindow(probe, replace(empty(8), n=500)),),
    )
    deployment = Deployment(window.start_ms, (probe,), (), "CPUExecutionProvider")
    bodies: list[Deployment | Window] = [deployment, window]
    messages = [Envelope("pod-0", 1, seq, "digits", "2", "sha2", body) for seq, body in enumerate(bodies)]
    assert store.ingest("windows", 0, None, 2, messages).applied == 2
    (version,) = store.versions(end - timedelta(minutes=5))
    return version.id


def configured(directory: Path, url: str) -> tuple[Path, Path]:
    """The shipped rules and routes, at the detector's address and with short waits."""
    rules_file, routes_file = directory / "rules.yml", directory / "alertmanager.yml"
    rules_file.write_text(rules.rules(url).replace("interval: 15s", "interval: 1s").replace("for: 5m", "for: 1s"))
    routes = yaml.safe_load(ROUTES.read_text().replace(rules.SHIPPED_URL, url))
    for route in (routes["route"], *routes["route"]["routes"]):
        # Tickets wait a little, as shipped: what inhibits them must have arrived.
        route |= {"group_wait": "3s" if route["receiver"] == "ticket" else "0s", "group_interval": "1s"}
    routes_file.write_text(yaml.safe_dump(routes))
    return rules_file, routes_file


def alert(store: Store, name: str, status: str) -> AlertRow | None:
    rows = store.alerts(now() - timedelta(hours=1))
    return next((row for row in rows if (row.alertname, row.status) == (name, status)), None)


@pytest.mark.slow
@pytest.mark.usefixtures("monitoring")
def test_a_finding_becomes_an_alert_and_its_row(
    store: Store, detector: tuple[HttpServer, DetectorMetrics], database_url: str, tmp_path: Path
) -> None:
    server, metrics = detector
    url = f"http://127.0.0.1:{server.port}"
    versions = runbooks.register(BOOKS.values(), store)
    dead = finding(channels=3)
    behind = replace(finding("relu3", "drift", "dead_neurons", origin=False), position=4)
    version_id = observe(store)
    store.save_check(check(version_id, dead, behind, at=now()), versions)
    metrics.refresh(store, versions)

    rules_file, routes_file = configured(tmp_path, url)
    targets = {"reluscope-detector": [f"127.0.0.1:{server.port}"]}
    with (
        alertmanager(tmp_path / "am", f"{url}/api/v1/alerts", config=routes_file) as am,
        prometheus(tmp_path / "prom", [rules_file], targets, alertmanager=am),
    ):
        eventually(lambda: len(httpx.get(f"{am}/api/v2/alerts").json()) == 2)
        seen = {one["labels"]["alertname"]: one for one in httpx.get(f"{am}/api/v2/alerts").json()}
        page = seen["ReluscopeDeadNeurons"]
        assert page["annotations"]["layer"] == "relu2"
        assert [one["name"] for one in page["receivers"]] == ["page"]
        eventually(lambda: alert(store, "ReluscopeDeadNeurons", "firing") is not None)

        row = alert(store, "ReluscopeDeadNeurons", "firing")
        assert row is not None
        assert (row.model, row.version, row.layer, row.cause) == ("digits", "2", "relu2", "dead_neurons")
        assert (row.severity, row.ends_at) == ("critical", None)
        # The link in the alert leads to the very text that the row is pinned to.
        served = httpx.get(row.annotations["runbook_url"], headers={"accept": "text/markdown"})
        with psycopg.connect(psycopg_url(database_url)) as connection:
            kept = connection.execute(
                "SELECT runbook_name, runbook_version, runbook_body FROM alert_timeline WHERE alertname = %s",
                [row.alertname],
            ).fetchone()
        assert kept == ("ReluscopeDeadNeurons", versions["ReluscopeDeadNeurons"], served.text)

        # What the dead layer explains is known to Alertmanager and sent to nobody.
        drift = next(
            one for one in httpx.get(f"{am}/api/v2/alerts").json()
            if one["labels"]["alertname"] == "ReluscopeActivationDrift"
        )  # fmt: skip
        assert drift["status"]["state"] == "suppressed"
        assert alert(store, "ReluscopeActivationDrift", "firing") is None

        # The next check finds nothing: the alert ends, in the same row.
        store.save_check(check(version_id, at=now()), versions)
        metrics.refresh(store, versions)
        eventually(lambda: alert(store, "ReluscopeDeadNeurons", "resolved") is not None)
        resolved = alert(store, "ReluscopeDeadNeurons", "resolved")
        assert resolved is not None
        assert resolved.ends_at is not None
        assert resolved.starts_at == row.starts_at
        assert alert(store, "ReluscopeDeadNeurons", "firing") is None


@pytest.mark.slow
@pytest.mark.usefixtures("monitoring")
def test_alerts_that_end_while_they_are_held_back_end_in_sql_too(
    store: Store, detector: tuple[HttpServer, DetectorMetrics], database_url: str, tmp_path: Path
) -> None:
    server, metrics = detector
    url = f"http://127.0.0.1:{server.port}"
    versions = runbooks.register(BOOKS.values(), store)
    drift = replace(finding("relu3", "drift", "model_change"), position=4)
    dead = finding(channels=3)
    version_id = observe(store)

    def told(*findings: Finding) -> None:
        store.save_check(check(version_id, *findings, at=now()), versions)
        metrics.refresh(store, versions)

    def states() -> dict[str, tuple[str, str | None]]:
        with psycopg.connect(psycopg_url(database_url)) as connection:
            rows = connection.execute("SELECT alertname, state, ended_by FROM alert_timeline").fetchall()
        return {name: (state, ended_by) for name, state, ended_by in rows}

    rules_file, routes_file = configured(tmp_path, url)
    targets = {"reluscope-detector": [f"127.0.0.1:{server.port}"]}
    with (
        alertmanager(tmp_path / "am", f"{url}/api/v1/alerts", config=routes_file) as am,
        prometheus(tmp_path / "prom", [rules_file], targets, alertmanager=am),
    ):

        def reconciled() -> dict[str, tuple[str, str | None]]:
            reconcile(store, Alertmanager(am), now(), timedelta(0))
            return states()

        told(drift)
        eventually(lambda: states() == {"ReluscopeActivationDrift": ("firing", None)})
        told(drift, dead)  # which inhibits the drift's notices
        eventually(lambda: "ReluscopeDeadNeurons" in states())
        silence = {
            "matchers": [{"name": "alertname", "value": "ReluscopeDeadNeurons", "isRegex": False}],
            "startsAt": now().isoformat(),
            "endsAt": (now() + timedelta(hours=1)).isoformat(),
            "createdBy": "ada",
            "comment": "rolled back, ticket 12",
        }
        silence_id = httpx.post(f"{am}/api/v2/silences", json=silence).json()["silenceID"]
        held = {"ReluscopeActivationDrift": ("inhibited", None), "ReluscopeDeadNeurons": ("silenced", None)}
        eventually(lambda: reconciled() == held)
        told()  # both end, and nobody is told of the silenced one's end
        eventually(lambda: {state for state, _ in reconciled().values()} == {"resolved"}, 60)
        assert states()["ReluscopeDeadNeurons"] == ("resolved", "reconciled")

    with psycopg.connect(psycopg_url(database_url)) as connection:
        rows = connection.execute("SELECT alertname, holds -> 0 FROM alert_timeline").fetchall()
    holds: dict[str, dict[str, str]] = dict(rows)
    silenced, inhibited = holds["ReluscopeDeadNeurons"], holds["ReluscopeActivationDrift"]
    assert (silenced["kind"], silenced["id"]) == ("silence", silence_id)
    assert (silenced["by"], silenced["comment"]) == ("ada", "rolled back, ticket 12")
    assert (inhibited["kind"], inhibited["by"]) == ("inhibition", "ReluscopeDeadNeurons")
