"""Odd pods in whole checks: on an in-memory store, and on Postgres through everything that the detector runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import psycopg
import pytest

from agent.summary import Summary
from agent.wire import Envelope, ProbeWindow, Window
from deploy.local.postgres import psycopg_url
from detector.checks.check import CheckSettings, prepare
from detector.checks.every import run_all
from detector.domain.finding import Check
from detector.statistics.sequential import FAMILIES, AlarmEvidence
from detector.store import Store
from tests.detector.fakes import START, WINDOW, FakeStore, probe, rectified, summarise

PROBES = [probe("image", 0, 1, "input"), probe("relu", 1, 8), probe("late", 2, 8)]
SETTINGS = CheckSettings(reference_requests=2000, reference_windows=1, lookback_seconds=3600)
GRACE = timedelta(seconds=10)
REFERENCE_WINDOWS = 4
PODS = ("pod-a", "pod-b", "pod-c", "pod-d")


def layers(rng: np.random.Generator, scale: float = 1.0, image: float = 1.0, n: int = 150) -> dict[str, Summary]:
    """One agent's minute: ``scale`` multiplies both rectifiers, ``image`` the input."""
    return {
        "image": summarise(rectified(rng, n, 1, zeros=0, scale=image)),
        "relu": summarise(rectified(rng, n, 8, scale=scale)),
        "late": summarise(rectified(rng, n, 8, scale=scale)),
    }


class Play:
    """A fleet with a reference; `step` adds a window of every pod and stores a check of it."""

    def __init__(self, seed: int = 0) -> None:
        self.rng, self.store, self.windows = np.random.default_rng(seed), FakeStore(), 0
        self.version = self.store.add_version("1", PROBES)
        for _ in range(REFERENCE_WINDOWS):
            self.add()

    def add(self, pods: tuple[str, ...] = PODS, **odd: float) -> None:
        fleet = {pod: layers(self.rng, **(odd if pod == "pod-c" else {})) for pod in pods}  # type: ignore[arg-type]
        self.store.add_fleet(self.version, fleet, START + self.windows * WINDOW)
        self.windows += 1

    def step(self, pods: tuple[str, ...] = PODS, **odd: float) -> Check:
        self.add(pods, **odd)
        found, advance = prepare(self.store, self.version, SETTINGS, START + self.windows * WINDOW + GRACE)
        self.store.save_check(found, {}, advance)
        return found

    @property
    def evidence(self) -> AlarmEvidence:
        return self.store.alarm_states[self.version.id].families["fleet"]


def odd(check: Check) -> list[tuple[str, str, list[str]]]:
    return [(f.layer, f.cause, f.details["agents"]) for f in check.findings if f.test == "fleet"]


def test_an_odd_pod_is_named_after_a_few_windows_with_its_first_layer() -> None:
    play = Play()
    assert not any(play.step().findings for _ in range(10))
    found = [play.step(scale=2.4) for _ in range(6)]
    first = next(i for i, check in enumerate(found) if odd(check))
    assert 2 <= first <= 4
    assert odd(found[first]) == [("relu", "hardware_mismatch", ["pod-c"])]
    one = next(f for f in found[first].findings if f.test == "fleet")
    assert one.summary.startswith("agent pod-c: mean of relu at 2.")
    assert one.details["alarm_evidence"] >= 1
    assert one.details["layers"] == ["relu", "late"]
    assert found[first].alarms["fleet"]["alarm"] == 1
    # What the merged windows say of drift keeps its own cause.
    assert {f.cause for f in found[-1].findings if f.test != "fleet"} <= {"model_change"}


def test_a_pod_with_other_inputs_gets_other_traffic() -> None:
    play = Play(seed=1)
    found = [play.step(scale=1.8, image=1.8) for _ in range(8)][-1]
    assert odd(found) == [("image", "input_shift", ["pod-c"])]


def test_a_drained_pod_is_told_no_more_and_the_alarm_ends() -> None:
    play = Play(seed=2)
    for _ in range(6):
        play.step(scale=3.0)
    assert play.evidence.alarm
    left = ("pod-a", "pod-b", "pod-d")
    assert odd(play.step(left)) == []
    after = [play.step(left) for _ in range(6)]
    assert after[-1].alarms["fleet"]["alarm"] == 0
    assert after[-1].alarms["fleet"]["evidence"] < 1e-3


def test_pods_that_are_long_gone_leave_the_evidence() -> None:
    play = Play(seed=3)
    for _ in range(3):
        play.step()
    renamed = ("pod-a", "pod-b", "pod-e")
    play.step(renamed)
    assert set(play.evidence.layers) == {*PODS, "pod-e"}
    hour = int(SETTINGS.lookback_seconds // 60)
    for _ in range(hour - 2):
        play.step(renamed)
    assert set(play.evidence.layers) == {*PODS, "pod-e"}
    before = play.evidence
    play.step(renamed)
    assert set(play.evidence.layers) == set(renamed)
    assert play.evidence.level <= before.level + WINDOW / timedelta(days=1)


def test_two_pods_or_one_are_not_compared() -> None:
    play = Play(seed=4)
    for _ in range(4):
        found = play.step(("pod-a", "pod-c"), scale=5.0)
    assert odd(found) == []
    assert play.evidence == AlarmEvidence(days=play.evidence.days)


def test_a_state_without_this_family_is_carried_on() -> None:
    play = Play(seed=5)
    play.step()
    state = play.store.alarm_states[play.version.id]
    old = {name: one for name, one in state.families.items() if name != "fleet"}
    play.store.alarm_states[play.version.id] = replace(state, families=old)
    now = START + play.windows * WINDOW + GRACE
    assert prepare(play.store, play.version, SETTINGS, now)[0].alarms["fleet"] == {"evidence": 0.0, "alarm": 0.0}
    assert set(play.step().alarms) == set(FAMILIES)
    assert set(play.evidence.layers) == set(PODS)


def milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def messages(rng: np.random.Generator, first: int, last: int, scale: float = 1.0) -> list[Envelope]:
    """Windows of the minutes from ``first`` up to ``last``, of three pods of which pod-c is ``scale`` times as loud."""
    found = []
    for minute in range(first, last):
        start = START + minute * WINDOW
        for pod in PODS[:3]:
            summaries = layers(rng, scale if pod == "pod-c" else 1.0)
            items = tuple(ProbeWindow(p, summaries[p.name]) for p in PROBES)
            body = Window(milliseconds(start), milliseconds(start + WINDOW), items)
            found.append(Envelope(pod, 1, minute, "digits", "1", "1" * 64, body))
    return found


def test_the_odd_pod_of_three_is_found_stored_and_read_back(database_url: str) -> None:
    rng, store, offset = np.random.default_rng(6), Store(database_url), None
    store.maintain(START, retention_days=30, days_ahead=2)
    checks = []
    for first, last, scale in ((0, 5, 1.0), (5, 7, 1.0), (7, 9, 2.5), (9, 11, 2.5), (11, 13, 2.5)):
        store.ingest("windows", 0, offset, last, messages(rng, first, last, scale))
        offset = last
        checks += run_all(store, SETTINGS, START + last * WINDOW + GRACE, {"ReluscopeOddPod": 1})
    assert [odd(check) for check in checks[:2]] == [[], []]
    assert odd(checks[-1]) == [("relu", "hardware_mismatch", ["pod-c"])]
    version = store.model_version("digits", "1")
    assert version is not None
    stored = store.checks(version.id, START, 1)[0].check
    assert stored.findings == checks[-1].findings
    state = store.alarm_state(version.id)
    assert state is not None
    evidence = state.families["fleet"]
    assert evidence.alarm
    assert {name: r.shape for name, r in evidence.layers.items()} == dict.fromkeys(PODS[:3], (9,))
    assert evidence.layers["pod-c"].max() > 1000 * evidence.layers["pod-a"].max()
    with psycopg.connect(psycopg_url(database_url)) as connection:
        row = connection.execute(
            "SELECT details ->> 'agents', runbook_name, runbook_version FROM findings WHERE test = 'fleet' LIMIT 1"
        ).fetchone()
        assert row == ('["pod-c"]', "ReluscopeOddPod", 1)
        for view in ("drift_findings", "paired_findings"):
            named = connection.execute(f"SELECT count(*) FROM {view} WHERE test = 'fleet'").fetchone()
            assert named == (0,)
    store.close()


def test_agents_are_read_over_finite_values_and_by_time(database_url: str) -> None:
    rng, store = np.random.default_rng(7), Store(database_url)
    store.maintain(START, retention_days=30, days_ahead=2)
    sent = messages(rng, 0, 3)
    lost = summarise(np.full((50, 8), np.nan))
    body = Window(milliseconds(START), milliseconds(START + WINDOW), (ProbeWindow(PROBES[1], lost),))
    store.ingest("windows", 0, None, 1, [*sent, Envelope("pod-x", 1, 0, "digits", "1", "1" * 64, body)])
    version = store.model_version("digits", "1")
    assert version is not None
    fake = FakeStore()
    for minute in range(2):
        window = {e.agent_id: {i.probe.name: i.summary for i in e.body.probes} for e in sent if e.seq == minute}  # type: ignore[union-attr]
        if minute == 0:
            window["pod-x"] = {"relu": lost}
        fake.add_fleet(fake.add_version("1", PROBES) if minute == 0 else fake.known[1], window, START + minute * WINDOW)
    end = START + 2 * WINDOW
    ours, theirs = store.agents(version.id, START, end), fake.agents(1, START, end)
    assert {agent: set(one) for agent, one in ours.items()} == {agent: set(one) for agent, one in theirs.items()}
    for agent, one in theirs.items():
        for layer, scalars in one.items():
            read = ours[agent][layer]
            assert (read.n, read.pairs, read.nonfinite, read.max) == (
                scalars.n, scalars.pairs, scalars.nonfinite, scalars.max,
            )  # fmt: skip
            assert (read.mean, read.active_share) == pytest.approx((scalars.mean, scalars.active_share))
    assert (ours["pod-x"]["relu"].pairs, ours["pod-x"]["relu"].mean, ours["pod-x"]["relu"].max) == (0, 0.0, None)
    assert store.agents(version.id, end, end + WINDOW)["pod-a"]["relu"].n == 150
    names = {"pod-a", "pod-x", "nobody"}
    assert store.live_agents(version.id, names, START) == {"pod-a", "pod-x"}
    assert store.live_agents(version.id, names, START + WINDOW) == {"pod-a"}
    assert store.live_agents(version.id + 1, names, START) == set()
    store.close()
