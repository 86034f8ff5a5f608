"""Wrong clocks and outages: windows close when they are complete, and what comes late is counted."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from detector.checks import check
from tests.lives.fleet import MINUTE, Fleet
from tests.lives.test_ordinary_days import Life, accounted, life

__all__ = ["life"]


@pytest.mark.parametrize("minutes", [30.0, -30.0, 30.4, -30.4, 12_000.0])
def test_a_clock_that_is_wrong(life: Life, promtool: str, tmp_path: Path, minutes: float) -> None:
    fleet = life()
    fleet.start("right-1", "right-2")
    fleet.start("wrong", clock_error=timedelta(minutes=minutes))
    fleet.run(40)
    account = fleet.account("1")
    assert account.late == 0, "its windows are moved to when they happened"
    assert account.checked > 40 * 60 - 600
    assert account.waiting <= 120, "nothing waits for a time that is yet to come"
    error = fleet.value("reluscope_clock_error_seconds", model="digits", version="1")
    assert error == pytest.approx(60 * minutes, abs=5)
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1")
    assert fleet.findings == []


@pytest.mark.parametrize("minutes", [30, -30])
def test_an_agent_without_heartbeats_and_with_a_wrong_clock_loses_nothing_uncounted(
    life: Life, promtool: str, tmp_path: Path, minutes: int
) -> None:
    fleet = life()
    fleet.start("right-1", "right-2")
    fleet.start("old", clock_error=timedelta(minutes=minutes), beats=False)
    fleet.run(70)
    account = fleet.account("1")
    if minutes < 0:
        assert account.late > 20 * 30, "it cannot be told from one that was cut off"
        late = fleet.value("reluscope_late_requests_total", model="digits", version="1")
        assert late == account.late
    else:
        assert account.late == 0
    assert account.checked >= 2 * 20 * 50, "the others are checked as if nothing were"
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1")


def test_a_clock_that_is_put_right(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    [pod, _] = fleet.start("a-1", "a-2")
    pod.clock_error = timedelta(minutes=-30)
    fleet.run(15)
    pod.clock_error = timedelta(0)
    fleet.run(15)
    assert fleet.value("reluscope_clock_error_seconds", model="digits", version="1") == 0
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1")


def test_agents_without_heartbeats_live_by_their_windows(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    fleet.start("a-1", "a-2", beats=False)
    fleet.run(30)
    assert fleet.state("1") == "observed"
    fleet.alerts(promtool, tmp_path)
    fleet.run(20, requests=0)
    assert fleet.state("1") == "no_agent", "without heartbeats, no traffic and no agent look alike"


@pytest.mark.parametrize("records_per_step", [None, 40])
def test_catching_up_after_the_detector_was_away_for_an_hour(
    life: Life, promtool: str, tmp_path: Path, records_per_step: int | None
) -> None:
    fleet = life()
    fleet.start("a-1", "a-2", "a-3")
    fleet.run(20)
    fleet.detector_up = False
    fleet.run(60)
    fleet.detector_up = True
    fleet.restart_detector()
    fleet.records_per_step = records_per_step
    before = fleet.account("1").checked
    fleet.run(1)
    if records_per_step:
        assert fleet.account("1").checked == before, "nothing is checked before all that was waiting is there"
    fleet.run(30)
    account = fleet.account("1")
    assert account.late == account.passed_over == 0
    assert account.checked > before + 85 * 60
    assert fleet.findings == []
    accounted(fleet, "1")
    # That no detector was there is a page, and the only one.
    # That no detector was there is a page, and that it was slow to come back.
    gaps = ["detector"] if records_per_step is None else ["detector", "ingest"]
    fleet.alerts(promtool, tmp_path, [{"alertname": "ReluscopeTelemetryGap", "gap": gap} for gap in gaps])


def _the_broker_was_away(life: Life) -> Fleet:
    fleet = life()
    fleet.start("a-1", "a-2", "a-3")
    fleet.run(20)
    fleet.broker_up = False
    fleet.run(60)
    fleet.broker_up = True
    for pod, most in zip(fleet.pods, (None, 9, 5), strict=True):  # each gets rid of its backlog at a pace of its own
        pod.pace = most
    fleet.run(20)
    return fleet


def test_catching_up_after_the_broker_was_away_for_an_hour(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = _the_broker_was_away(life)
    account = fleet.account("1")
    assert account.late == 0, "checks wait for agents that say that they have more"
    assert account.checked > 95 * 60 - 300
    assert fleet.findings == []
    accounted(fleet, "1")
    fleet.alerts(promtool, tmp_path, [{"alertname": "ReluscopeTelemetryGap", "gap": "ingest"}])


def test_what_the_watermark_is_for(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the wall clock, the windows of the hour would close as soon as the first agent's part of them is there."""
    monkeypatch.setattr(check, "closed_until", lambda ingested, now, grace, wait: now - grace)
    fleet = _the_broker_was_away(life)
    assert fleet.account("1").late > 1000
    accounted(fleet, "1")


def test_an_agent_that_does_not_come_back_holds_nobody_up(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    fleet.start("a-1", "a-2")
    [lost] = fleet.start("lost")
    fleet.run(20)
    fleet.broker_up = False
    fleet.run(10)
    fleet.pods.remove(lost)
    fleet.broker_up = True
    fleet.run(4)
    checked = fleet.account("1").checked
    assert checked > 30 * 40 - 400, "checks waited for it for two minutes, and no longer"
    fleet.now += MINUTE
    fleet.pods.append(lost)  # its disk survived: what it kept comes very late
    fleet.run(5)
    account = fleet.account("1")
    assert account.late >= 9 * 20
    assert fleet.value("reluscope_late_requests_total", model="digits", version="1") == account.late
    accounted(fleet, "1")
    assert fleet.findings == []
