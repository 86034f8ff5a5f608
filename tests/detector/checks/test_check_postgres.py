"""Checks and references on the real store."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from click.testing import CliRunner

from agent.wire import Deployment, Envelope, Kinship, ProbeWindow, Window
from detector.checks.check import CheckSettings, prepare
from detector.checks.every import run_all
from detector.references import command as reference
from detector.store import LostOwnership, Store
from tests.detector.fakes import START, WINDOW, kin, probe, rectified, summarise

PROBES = (probe("image", 0, 1, "input"), probe("relu", 1, 8))
SETTINGS = CheckSettings(reference_requests=800, reference_windows=1)


def milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def messages(version: str, first: int, last: int, dead: int = 0) -> list[Envelope]:
    """The deployment before minute ``first``, and the windows of the minutes up to ``last``."""
    rng = np.random.default_rng(first)
    begin = START + first * WINDOW
    bodies: list[Window | Deployment | Kinship] = [Deployment(milliseconds(begin), PROBES, (), "CPUExecutionProvider")]
    if int(version) > 1:
        former = str(int(version) - 1)
        bodies.append(Kinship(milliseconds(begin), former, former * 64, tuple(kin(rng).values())))
    for minute in range(first, last):
        values = rectified(rng, 400, 8)
        values[:, :dead] = 0
        summaries = (summarise(rectified(rng, 400, 1, zeros=0)), summarise(values))
        windows = tuple(ProbeWindow(p, s) for p, s in zip(PROBES, summaries, strict=True))
        start = START + minute * WINDOW
        bodies.append(Window(milliseconds(start), milliseconds(start + WINDOW), windows))
    return [
        Envelope("pod", int(version), seq, "digits", version, version * 64, body) for seq, body in enumerate(bodies)
    ]


def test_a_bad_deployment_is_found_against_the_version_before(database_url: str) -> None:
    store = Store(database_url)
    store.maintain(START, retention_days=30, days_ahead=2)
    store.ingest("windows", 0, None, 10, messages("1", 0, 3))
    now = START + 3 * WINDOW + timedelta(seconds=10)
    assert [check.status for check in run_all(store, SETTINGS, now, {})] == ["ok"]

    store.ingest("windows", 0, 10, 20, messages("2", 3, 6, dead=3))  # the last two have not closed yet
    [bad] = run_all(store, SETTINGS, now + WINDOW, {"ReluscopeDeadNeurons": 1})  # version 1 is superseded
    assert bad.status == "findings"
    assert [(f.layer, f.test, f.cause, f.channels, f.origin) for f in bad.findings] == [
        ("relu", "dead", "dead_neurons", (0, 1, 2), True)
    ]
    stored = {one.version: one.check for one in store.latest_checks(START)}
    assert stored["2"].findings == bad.findings
    assert stored["2"].layers == bad.layers

    shown = CliRunner().invoke(reference.command, ["show", "--model", "digits", "--database-url", database_url])
    assert shown.exit_code == 0, shown.output
    assert "References of digits@2" in shown.output
    assert "previous_version" in shown.output
    arguments = [
        "auto",
        "--model",
        "digits",
        "--requests",
        "400",
        "--windows",
        "3",
        "--effect",
        "0.5",
        "--database-url",
        database_url,
    ]
    made = CliRunner().invoke(reference.command, arguments)
    assert "first_requests" in made.output
    assert "Is it near version 1? near: channels correlate by" in shown.output
    store.close()


def test_the_evidence_is_stored_with_the_check_and_only_from_where_it_began(database_url: str) -> None:
    store = Store(database_url)
    store.ingest("windows", 0, None, 10, messages("1", 0, 4))
    version = store.model_version("digits", "1")
    assert version is not None
    assert store.alarm_state(version.id) is None
    now = START + 4 * WINDOW + timedelta(seconds=10)
    check, advance = prepare(store, version, SETTINGS, now)
    assert advance is not None
    store.save_check(check, {}, advance)
    state = store.alarm_state(version.id)
    assert state is not None
    assert (state.reference_id, state.last) == (advance.state.reference_id, advance.state.last)
    for family, evidence in advance.state.families.items():
        kept = state.families[family]
        assert (kept.days, kept.alarm) == (evidence.days, evidence.alarm)
        assert {name: r.tolist() for name, r in kept.layers.items()} == {
            name: r.tolist() for name, r in evidence.layers.items()
        }
    effects = store.reference(version.id).effects  # type: ignore[union-attr]
    assert effects["relu"].windows == 2
    assert effects["relu"].values.shape == (8,)

    with pytest.raises(LostOwnership, match="another process"):
        store.save_check(check, {}, advance)  # as by a replica that read the same state
    assert len(store.checks(version.id, START, 10)) == 1
    assert prepare(store, version, SETTINGS, now)[1] is None
    store.ingest("windows", 0, 10, 20, [replace(messages("1", 4, 5)[1], seq=99)])
    check, advance = prepare(store, version, SETTINGS, now + WINDOW)
    assert advance is not None
    assert advance.before == state.last.end
    store.save_check(check, {}, advance)
    with pytest.raises(LostOwnership):
        store.save_check(check, {}, advance)
    stored = store.checks(version.id, START, 1)[0].check
    assert stored.alarms == check.alarms
    store.close()
