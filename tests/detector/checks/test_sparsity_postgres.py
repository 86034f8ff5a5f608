"""The sparsity band on the real store: kept with the reference, judged by checks, told in SQL."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import psycopg
import pytest

from agent.wire import Envelope, ProbeWindow, Window
from deploy.local.postgres import psycopg_url
from detector import resources
from detector.checks.check import CheckSettings, run_check
from detector.checks.every import run_all
from detector.store import Store
from detector.store.migration import move
from tests.detector.builders import ms
from tests.detector.fakes import START, WINDOW, probe, rectified, summarise

PROBES = (probe("image", 0, 1, "input"), probe("relu", 1, 128))
REFERENCE_WINDOWS = 12
SETTINGS = CheckSettings(reference_requests=REFERENCE_WINDOWS * 400, reference_windows=1)


def messages(first: int, last: int, zeros: float = 0.5) -> list[Envelope]:
    """Windows of the minutes from ``first`` to ``last``, of 400 requests each."""
    rng, found = np.random.default_rng(first), []
    for minute in range(first, last):
        start = START + minute * WINDOW
        layers = (summarise(rectified(rng, 400, 1, zeros=0)), summarise(rectified(rng, 400, 128, zeros)))
        body = Window(
            ms(start), ms(start + WINDOW), tuple(ProbeWindow(p, s) for p, s in zip(PROBES, layers, strict=True))
        )
        found.append(Envelope("pod", 1, minute, "digits", "1", "1" * 64, body))
    return found


def closed(windows: int) -> timedelta:
    return windows * WINDOW + timedelta(seconds=10)


def test_a_layer_that_grows_sparse_as_a_whole_is_found(database_url: str) -> None:
    store = Store(database_url)
    store.ingest("windows", 0, None, 10, messages(0, REFERENCE_WINDOWS + 1))
    now = START + closed(REFERENCE_WINDOWS + 1)
    [healthy] = run_all(store, SETTINGS, now, {})
    assert healthy.status == "ok"
    base = store.reference(healthy.model_version_id)
    assert base is not None
    scatter = base.effects["relu"].sparsity
    assert scatter is not None
    assert 0.5 * 0.25 / 128 < scatter.variance < 6 * 0.25 / 128
    assert 1 < scatter.design_effect < 2

    store.ingest("windows", 0, 10, 20, messages(REFERENCE_WINDOWS + 1, REFERENCE_WINDOWS + 4, zeros=0.575))
    [bad] = run_all(store, SETTINGS, now + 3 * WINDOW, {"ReluscopeActivationDrift": 3})
    (found,) = bad.findings
    assert (found.layer, found.test, found.cause) == ("relu", "sparsity", "model_change")
    assert found.details["alarm_evidence"] >= 1
    assert bad.layers["relu"]["sparsity"] > bad.layers["relu"]["sparsity_high"]
    stored = store.checks(bad.model_version_id, START, 1)[0].check
    assert (stored.findings, stored.layers) == (bad.findings, bad.layers)
    with psycopg.connect(psycopg_url(database_url)) as connection:
        row = connection.execute(
            "SELECT layer, test, channels_changed, runbook_version, (details ->> 'sparsity_high')::double precision "
            "FROM drift_findings"
        ).fetchone()
    assert row == ("relu", "sparsity", 128, 3, pytest.approx(found.details["sparsity_high"]))
    store.close()


def test_the_scatter_of_a_single_window_is_kept_as_it_is(database_url: str) -> None:
    store = Store(database_url)
    store.ingest("windows", 0, None, 1, messages(0, 2))
    check = run_check(
        store, store.versions(START)[0], CheckSettings(reference_requests=400, reference_windows=1), START + closed(2)
    )
    base = store.reference(check.model_version_id)
    assert base is not None
    scatter = base.effects["relu"].sparsity
    assert scatter is not None
    assert scatter.variance == np.inf
    assert scatter.design_effect == pytest.approx(2.055, abs=0.01)
    assert check.layers["relu"]["sparsity_low"] < 0.5 < check.layers["relu"]["sparsity_high"]
    store.close()


def test_the_release_before_loses_only_what_it_cannot_name(empty_database_url: str) -> None:
    scripts = resources.migrations()
    move(empty_database_url, scripts)
    store = Store(empty_database_url)
    store.ingest("windows", 0, None, 10, messages(0, REFERENCE_WINDOWS + 1))
    store.ingest("windows", 0, 10, 20, messages(REFERENCE_WINDOWS + 1, REFERENCE_WINDOWS + 4, zeros=0.575))
    now = START + closed(REFERENCE_WINDOWS + 4)
    [bad] = run_all(store, SETTINGS, now, {})
    assert [f.test for f in bad.findings] == ["sparsity"]
    move(empty_database_url, scripts, "0005", down=True)
    with psycopg.connect(psycopg_url(empty_database_url)) as connection:
        assert connection.execute("SELECT count(*) FROM findings").fetchone() == (0,)
        families = connection.execute("SELECT family FROM alarm_families").fetchall()
        layers = connection.execute("SELECT DISTINCT family FROM alarm_layers").fetchall()
        alarms = connection.execute("SELECT DISTINCT jsonb_object_keys(alarms) FROM checks").fetchall()
    assert sorted(families) == sorted(layers) == [("dead",), ("explosion",)]
    assert sorted(alarms) == [("dead",), ("drift",), ("explosion",)]
    move(empty_database_url, scripts)
    # Nothing new has come, and what was kept knows nothing of the band: the widest one holds, and no evidence is there.
    again = run_check(store, store.versions(START)[0], SETTINGS, now)
    assert again.alarms["sparsity"] == {"evidence": 0.0, "alarm": 0.0}
    assert again.layers["relu"]["sparsity_high"] > bad.layers["relu"]["sparsity_high"]
    store.close()
