"""Ordinary days of a fleet: no false page, every request accounted for, no table that grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from detector.store.heartbeats import MOST_AGENTS
from tests.lives.fleet import MINUTE, Fleet

Life = Callable[..., Fleet]


@pytest.fixture
def life(database_url: str) -> Iterator[Life]:
    lived: list[Fleet] = []

    def begin(**fields: object) -> Fleet:
        lived.append(Fleet(database_url, **fields))  # type: ignore[arg-type]
        return lived[-1]

    yield begin
    for fleet in lived:
        fleet.close()


def accounted(fleet: Fleet, *versions: str) -> None:
    """Every request that agents delivered is in exactly one batch, reference or count."""
    for version in versions:
        account = fleet.account(version)
        assert account.stored == fleet.delivered(version), version
        assert account.adds_up, (version, account)


def test_a_rolling_update_with_new_pod_names(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    fleet.start("a-1", "a-2", "a-3")
    fleet.run(20)
    for i in (1, 2, 3):  # one after another; the last dies without a word
        fleet.start(f"b-{i}", version="2")
        fleet.run(2)
        fleet.end(f"a-{i}", farewell=i < 3)
        fleet.run(1)
    assert fleet.state("1") == "observed"
    fleet.run(5)
    assert (fleet.state("1"), fleet.state("2")) == ("superseded", "observed")
    fleet.run(30)
    assert [version.version for version in fleet.store.current_versions(fleet.now)] == ["2"]
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1", "2")
    assert fleet.findings == []


def test_a_pod_that_moves_in_the_midst_of_a_rollout_keeps_no_old_version_alive(
    life: Life, promtool: str, tmp_path: Path
) -> None:
    fleet = life()
    fleet.start("a-1")
    fleet.run(5)
    fleet.start("b-1", version="2")
    fleet.run(2)
    fleet.start("a-2")  # the old version, deployed once more after the new one
    fleet.run(2)
    fleet.end("a-1", "a-2", farewell=False)
    fleet.run(20)
    assert fleet.state("1") == "superseded"
    fleet.alerts(promtool, tmp_path)


def test_a_rollback_supersedes_the_new_version(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    fleet.start("a-1")
    fleet.run(5)
    fleet.start("b-1", version="2")
    fleet.end("a-1", farewell=False)
    fleet.run(8)
    fleet.start("c-1")
    fleet.run(2)
    fleet.end("b-1", farewell=False)
    fleet.run(15)
    assert (fleet.state("1"), fleet.state("2")) == ("observed", "superseded")
    fleet.alerts(promtool, tmp_path)


def test_traffic_falls_to_zero_at_night_and_comes_back(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life(step=5 * MINUTE)
    fleet.start("a-1", "a-2")
    fleet.run(24)
    fleet.run(96, requests=0)
    assert fleet.state("1") == "idle"
    fleet.run(12)
    assert fleet.state("1") == "observed"
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1")
    assert fleet.findings == []


def test_scaled_to_zero_is_no_gap(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    [old] = fleet.start("a-0")
    fleet.start("a-1", "a-2")
    fleet.run(5)
    fleet.end(old.name, farewell=False)  # scaled in without a word, long before
    fleet.run(10)
    fleet.end("a-1", "a-2")
    fleet.run(30)
    assert fleet.state("1") == "stopped"
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1")


def test_agents_that_vanish_are_a_gap(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    fleet.start("a-1", "a-2")
    fleet.run(10)
    fleet.end("a-1", "a-2", farewell=False)
    fleet.run(12)
    assert fleet.state("1") == "no_agent"
    fleet.alerts(promtool, tmp_path, [{"alertname": "ReluscopeTelemetryGap", "gap": "no_agent", "version": "1"}])


def test_agents_that_see_requests_and_send_nothing_are_a_gap(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    pods = fleet.start("a-1", "a-2")
    fleet.run(10)
    pods[0].replays = False
    fleet.run(20)
    assert fleet.state("1") == "observed", "one blind pod beside one that sees is no page"
    pods[1].replays = False
    fleet.run(20)
    assert fleet.state("1") == "blind"
    fleet.alerts(promtool, tmp_path, [{"alertname": "ReluscopeTelemetryGap", "gap": "blind", "version": "1"}])


def test_pods_scaled_in_and_out(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life(step=5 * MINUTE)
    fleet.start("steady-1", "steady-2", "steady-3")
    fleet.run(12)
    for wave in range(12):
        names = [f"burst-{wave}-{i}" for i in range(8)]
        fleet.start(*names)
        fleet.run(2)
        fleet.end(*names, farewell=wave % 2 == 0)
        fleet.run(1)
    fleet.run(2)
    assert fleet.rows("heartbeats") == 3 + 12 * 8
    assert fleet.value("reluscope_agents", model="digits", version="1", state="observing") == 3
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1")
    assert fleet.findings == []
    # A day later the evidence on pods that are gone is gone, too; a week later, their rows.
    fleet.now += timedelta(days=1)
    fleet.run(6)
    assert fleet.rows("alarm_layers WHERE family = 'fleet'") <= 3
    fleet.now += timedelta(days=7)
    fleet.run(1)
    fleet.store.maintain(fleet.now, 30, 0)
    assert fleet.rows("heartbeats") == 3 <= MOST_AGENTS
    assert fleet.rows("deployments") == 3 + 12 * 8
    fleet.store.maintain(fleet.now, 7, 0)
    assert fleet.rows("deployments") == 2, "of those older than windows are kept, a version's first and last"


def test_two_versions_at_once_are_both_watched(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    fleet.start("a-1", "a-2")
    fleet.run(15)
    fleet.start("canary", version="2")
    fleet.run(25)
    assert (fleet.state("1"), fleet.state("2")) == ("observed", "observed")
    checked = {check.version for check in fleet.store.latest_checks(fleet.now - 2 * MINUTE)}
    assert checked == {"1", "2"}
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1", "2")
    fleet.end("canary")
    fleet.run(10)
    assert (fleet.state("1"), fleet.state("2")) == ("observed", "stopped")


def test_windows_of_one_request(life: Life, promtool: str, tmp_path: Path) -> None:
    fleet = life()
    fleet.start("a-1")
    fleet.run(20)
    fleet.run(40, requests=1)
    fleet.run(20)
    account = fleet.account("1")
    assert account.passed_over > 0, "too few of them fit into a check: counted, not lost"
    fleet.alerts(promtool, tmp_path)
    accounted(fleet, "1")
    assert fleet.findings == []
    assert fleet.value("reluscope_passed_over_requests_total", model="digits", version="1") == account.passed_over
