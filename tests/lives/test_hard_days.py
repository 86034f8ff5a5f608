"""Days that are hard to tell from a fault, and are none."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from tests.lives.fleet import MINUTE, Fleet
from tests.lives.test_ordinary_days import Life, accounted, life

__all__ = ["life"]


def test_a_version_replaced_in_place_while_the_broker_was_away(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    pods = fleet.start("a-1", "a-2")
    fleet.run(20)
    fleet.broker_up = False
    fleet.run(40)
    for pod in pods:
        pod.change("2", fleet.now)
    fleet.run(5)
    fleet.broker_up = True
    fleet.run(40)
    assert (fleet.state("1"), fleet.state("2")) == ("superseded", "observed")
    fleet.alerts(promtool, tmp_path, [{"alertname": "ReluscopeTelemetryGap", "gap": "ingest"}])
    assert fleet.findings == []


def test_too_few_requests_a_day_for_any_group(life: Life) -> None:
    """Each pod holds its requests back for want of more, and gives them up after a day; it is not blind."""
    fleet = life(step=240 * MINUTE)
    fleet.start("a-1", "a-2", group=20)
    fleet.run(12 * 6, requests=2)
    assert fleet.state("1") == "idle"
    blind = [values for series, values in fleet.series.items() if "version_state{" in series and "blind" in series]
    assert not blind, "at no time"


def test_replay_so_slow_that_a_group_takes_an_hour(life: Life, promtool: str, tmp_path: Path) -> None:
    """Budgets lower the sampling rate of a model with much traffic and long runs far below the configured one."""
    fleet = life(step=2 * MINUTE)
    fleet.start("a-1", group=20, thinned=100)
    fleet.run(90, requests=1)
    assert fleet.state("1") in ("observed", "idle")
    fleet.alerts(promtool, tmp_path)


def test_a_canary_that_nobody_could_load_and_that_went_away(life: Life, promtool: str, tmp_path: Path) -> None:
    """It was said that it cannot be loaded; that its pod is gone, without a word, is nobody's gap."""
    fleet = life()
    fleet.start("a-1", "a-2")
    fleet.run(5)
    fleet.start("canary", version="2", refuses=True)
    fleet.run(3)
    fleet.end("canary", farewell=False)
    fleet.run(20)
    assert fleet.state("1") == "observed"
    # While it lives, somebody may ask it in vain; once it is gone, nobody misses it.
    fleet.alerts(promtool, tmp_path, [{"alertname": "ReluscopeTelemetryGap", "gap": "blind", "version": "2"}])


def _cron(fleet: Fleet, day: int) -> None:
    names = [f"job-{day}-{i}" for i in range(2)]
    fleet.start(*names)
    fleet.run(12)
    fleet.end(*names)
    fleet.run(3)
    fleet.now += timedelta(hours=22)


def test_a_model_that_serves_for_an_hour_a_day(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life(step=5 * MINUTE)
    for day in range(4):
        _cron(fleet, day)
    fleet.run(6)
    assert fleet.state("1") == "stopped"
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1")
    assert fleet.findings == []


def test_an_agent_that_restarts_every_other_minute(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    fleet.start("steady")
    for _ in range(15):
        fleet.start("loop")
        fleet.run(2)
        fleet.end("loop", farewell=False)
    fleet.run(5)
    assert fleet.state("1") == "observed"
    fleet.alerts(promtool, tmp_path)
    assert fleet.findings == []


def test_old_pods_that_linger_without_traffic(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    old = fleet.start("a-1", "a-2", "a-3")
    fleet.run(15)
    fleet.start("b-1", "b-2", "b-3", version="2")
    for pod in old:
        pod.drained = True
    fleet.run(25)
    assert (fleet.state("1"), fleet.state("2")) == ("idle", "observed")
    fleet.end("a-1", "a-2", "a-3", farewell=False)
    fleet.run(15)
    assert fleet.state("1") == "superseded"
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1", "2")
    assert fleet.findings == []
