"""Checks over time, on an in-memory store: every window counts once, and alarms come, stay and end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from agent.summary import Summary
from detector.checks.check import MOST_BATCHES, CheckSettings, prepare
from detector.checks.every import run_all
from detector.domain.finding import Check
from detector.domain.types import ModelVersion
from detector.references import choice, making
from detector.statistics.sequential import FAMILIES
from tests.detector.fakes import START, WINDOW, FakeStore, probe, rectified, summarise

PROBES = [probe("image", 0, 1, "input"), probe("relu", 1, 8)]
SETTINGS = CheckSettings(min_requests=200, reference_requests=5000, reference_windows=1)
GRACE = timedelta(seconds=10)
REFERENCE_WINDOWS = 20


def window(rng: np.random.Generator, scale: float = 1.0, dead: int = 0, zeros: float = 0.5) -> dict[str, Summary]:
    values = rectified(rng, 250, 8, zeros)
    values[:, 7] *= scale
    values[:, :dead] = 0
    return {"image": summarise(rectified(rng, 250, 1, zeros=0)), "relu": summarise(values)}


class Play:
    """One model version with a reference; `step` adds a window and stores a check of it."""

    def __init__(self, seed: int = 0) -> None:
        self.rng, self.store = np.random.default_rng(seed), FakeStore()
        self.version: ModelVersion = self.store.add_version("1", PROBES)
        self.windows = 0
        for _ in range(REFERENCE_WINDOWS):
            self.add()

    def add(self, scale: float = 1.0, dead: int = 0) -> None:
        self.store.add_window(self.version, window(self.rng, scale, dead), START + self.windows * WINDOW)
        self.windows += 1

    def check(self, settings: CheckSettings = SETTINGS) -> Check:
        found, advance = prepare(self.store, self.version, settings, START + self.windows * WINDOW + GRACE)
        self.store.save_check(found, {}, advance)
        return found

    def step(self, scale: float = 1.0, dead: int = 0) -> Check:
        self.add(scale, dead)
        return self.check()

    def days(self) -> float:
        state = self.store.alarm_state(self.version.id)
        return 0.0 if state is None else state.families["drift"].days


def test_every_window_counts_once_however_often_is_checked() -> None:
    play = Play()
    play.step()
    first = play.days()
    assert first == pytest.approx(WINDOW / timedelta(days=1))
    again = play.check()
    assert play.days() == first
    assert (again.status, again.n, again.window_end) == ("ok", 250, START + 21 * WINDOW)
    play.step()
    assert play.days() == pytest.approx(2 * first)
    assert set(again.alarms) == set(FAMILIES)
    assert all(0 <= one["evidence"] < 1e-3 and not one["alarm"] for one in again.alarms.values())


def test_windows_missed_during_an_outage_are_taken_in_order_afterwards() -> None:
    steady, late = Play(seed=3), Play(seed=3)
    for _ in range(5):
        steady.step(scale=1.3)
        late.add(scale=1.3)
    late.check()
    ours, theirs = (play.store.alarm_states[1].families["drift"] for play in (steady, late))
    assert ours.days == pytest.approx(theirs.days)
    assert ours.layers["relu"] == pytest.approx(theirs.layers["relu"])
    for _ in range(MOST_BATCHES + 3):
        late.add()
    late.check()
    assert late.check().window_end == START + late.windows * WINDOW  # the rest in the next


def test_a_weak_shift_of_one_channel_is_found_after_a_few_windows_and_named() -> None:
    play = Play()
    findings = [play.step(scale=1.35).findings for _ in range(25)]
    first = next(i for i, found in enumerate(findings) if found)
    assert 2 <= first <= 20
    (found,) = findings[first]
    assert (found.layer, found.test, found.channels) == ("relu", "drift", (7,))
    assert found.details["alarm_evidence"] >= 1


def test_healthy_windows_never_page_and_an_alarm_ends_after_a_few_of_them() -> None:
    play = Play(seed=1)
    assert not any(play.step().findings for _ in range(30))
    bad = [play.step(dead=3) for _ in range(2)]
    assert [f.test for f in bad[0].findings] == ["dead"]
    assert bad[0].alarms["dead"]["alarm"] == 1
    healthy = [play.step() for _ in range(8)]
    # Silent channels speak again at once; what drifted is doubted a little longer.
    assert not any(f.test == "dead" for f in healthy[0].findings)
    assert healthy[-1].status == "ok"
    assert healthy[-1].alarms["drift"]["alarm"] == 0
    assert play.days() < 8 * WINDOW / timedelta(days=1)  # began anew when the alarm ended


def test_while_an_alarm_ends_its_findings_speak_of_earlier_windows() -> None:
    play = Play(seed=3)
    shifted = [play.step(scale=3.0) for _ in range(4)][-1].findings
    assert [(f.layer, f.details["shown_now"]) for f in shifted] == [("relu", True)]
    assert "drifted, the worst by" in shifted[0].summary
    ending = play.step().findings
    assert [f.summary for f in ending] == [
        "relu: 1 of 8 channels drifted in earlier windows; the newest alone do not show it"
    ]
    assert not ending[0].details["shown_now"]


def test_a_new_reference_and_a_long_silence_begin_anew_and_old_windows_stay_used() -> None:
    play = Play(seed=2)
    for _ in range(3):
        play.step()
    making.from_windows(play.store, play.version, START, START + 10 * WINDOW)
    assert play.check().status == "too_few_requests"  # what was used against the former reference is not used again
    play.step()
    assert play.days() == pytest.approx(WINDOW / timedelta(days=1))
    play.windows += 2000  # more than a day
    play.step()
    assert play.days() == pytest.approx(WINDOW / timedelta(days=1))


def test_the_reference_knows_its_design_effect_and_a_successor_takes_it_over() -> None:
    play = Play()
    play.check()
    base = play.store.reference(play.version.id)
    assert base is not None
    assert base.effects["relu"].windows == REFERENCE_WINDOWS
    values = base.effects["relu"].values
    assert values.mean() == pytest.approx(1.4, abs=0.25)
    assert 1 <= values.min() < values.max() < 2
    second = play.store.add_version("2", PROBES, START + play.windows * WINDOW)
    taken = choice.from_previous(play.store, second, 100, START + play.windows * WINDOW)
    assert taken.effects == base.effects


def test_a_smaller_budget_needs_less_evidence() -> None:
    nervous = replace(SETTINGS, false_page_days=0.01)
    calm, alert = Play(seed=4), Play(seed=4)
    for play in (calm, alert):
        play.add(scale=1.3)
    ours, theirs = calm.check(), alert.check(nervous)
    ratio = theirs.alarms["drift"]["evidence"] / ours.alarms["drift"]["evidence"]
    assert ratio == pytest.approx(90 / 0.01)


def test_a_step_from_an_outdated_state_is_not_stored_by_run_all() -> None:
    play = Play()
    play.add()
    run_all(play.store, SETTINGS, START + play.windows * WINDOW + GRACE, {})
    assert play.days() > 0
    assert len(play.store.saved_checks) == 1
