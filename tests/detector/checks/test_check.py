"""Checks on an in-memory store: which windows are compared with what, and what is kept."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest

from agent.summary import Summary
from agent.wire import Probe
from detector.checks.check import CheckSettings, run_check
from detector.checks.every import run_all
from detector.domain.types import ModelVersion
from tests.detector.fakes import START, WINDOW, FakeStore, kin, probe, rectified, summarise

PROBES = [probe("image", 0, 1, "input"), probe("relu", 1, 8)]
SETTINGS = CheckSettings(min_requests=200, reference_requests=400, reference_windows=1)
GRACE = timedelta(seconds=10)


def window(rng: np.random.Generator, n: int = 250, dead: int = 0, relu_channels: int = 8) -> dict[str, Summary]:
    values = rectified(rng, n, relu_channels)
    values[:, :dead] = 0
    return {"image": summarise(rectified(rng, n, 1, zeros=0)), "relu": summarise(values)}


def after(windows: int) -> datetime:
    """A moment when so many windows have ended, and their grace too."""
    return START + windows * WINDOW + GRACE


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def fill(store: FakeStore, version: ModelVersion, rng: np.random.Generator, windows: int, n: int = 250) -> None:
    for i in range(windows):
        store.add_window(version, window(rng, n), START + i * WINDOW)


def test_before_there_are_enough_requests_there_is_no_reference(store: FakeStore, rng: np.random.Generator) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, rng, 1)
    check = run_check(store, version, SETTINGS, after(1))
    assert (check.status, check.n, check.reference_id) == ("no_reference", 250, None)
    assert check.note == "250 of 400 requests for a reference"
    assert store.saved_references == []


def test_the_reference_is_not_compared_with_itself(store: FakeStore, rng: np.random.Generator) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, rng, 2)
    check = run_check(store, version, SETTINGS, after(2))
    assert (check.status, check.n, check.reference_id) == ("too_few_requests", 0, 1)
    store.add_window(version, window(rng), START + 2 * WINDOW)
    check = run_check(store, version, SETTINGS, after(3))
    assert (check.status, check.n, check.findings) == ("ok", 250, ())
    assert (check.window_start, check.window_end) == (START + 2 * WINDOW, START + 3 * WINDOW)
    assert check.started_at == after(3) <= check.finished_at
    relu = check.layers["relu"]
    zeros = {key: relu.pop(key) for key in ("sparsity", "sparsity_low", "sparsity_high")}
    assert zeros["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert zeros["sparsity_low"] < zeros["sparsity"] < zeros["sparsity_high"]
    assert relu == {
        "dead_at_reference": 0,
        "newly_dead": 0,
        "dormant": 0,
        "unresolved": 0,
        "revived": 0,
        "alive": 8,
        "drifted": 0,
        "exploded": 0,
        "channels": 8,
    }
    assert check.layers["image"]["alive"] == 0  # no rectifier: nothing to call alive
    assert "sparsity" not in check.layers["image"]


def test_a_window_in_its_grace_is_not_read(store: FakeStore, rng: np.random.Generator) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, rng, 3)
    early = START + 3 * WINDOW + timedelta(seconds=SETTINGS.grace_seconds - 1)
    assert run_check(store, version, SETTINGS, early).status == "too_few_requests"


def test_as_few_of_the_newest_windows_as_hold_enough_requests(store: FakeStore, rng: np.random.Generator) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, rng, 12, n=90)
    check = run_check(store, version, SETTINGS, after(12))
    # The first five make the reference, then two batches of three windows; the last window waits for more.
    assert (check.n, check.window_start) == (270, START + 8 * WINDOW)
    few = CheckSettings(min_requests=200, reference_requests=400, reference_windows=1, lookback_windows=2)
    check = run_check(store, version, few, after(12))
    assert (check.status, check.n, check.note) == ("too_few_requests", 180, "180 of 200 requests")


def test_windows_older_than_the_lookback_are_not_read(store: FakeStore, rng: np.random.Generator) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, rng, 3)
    assert run_check(store, version, SETTINGS, after(3) + timedelta(days=2)).status == "too_few_requests"


def test_a_bad_version_is_compared_with_the_one_before(store: FakeStore, rng: np.random.Generator) -> None:
    fill(store, store.add_version("1", PROBES), rng, 3)
    bad = store.add_version("2", PROBES, START + 3 * WINDOW)
    store.kinships[bad.id, "0" * 64] = kin(rng)
    store.add_window(bad, window(rng, dead=3), START + 3 * WINDOW)
    check = run_check(store, bad, SETTINGS, after(4))
    assert check.status == "findings"
    assert [(f.layer, f.test, f.channels, f.cause) for f in check.findings] == [
        ("relu", "dead", (0, 1, 2), "dead_neurons")
    ]
    assert check.layers["relu"]["newly_dead"] == 3
    assert check.layers["relu"]["drifted"] == 0  # what died is told once
    assert store.reference(bad.id).origin == "previous_version"  # type: ignore[union-attr]


def test_layers_that_cannot_be_compared_are_named(store: FakeStore, rng: np.random.Generator) -> None:
    loose = [*PROBES[:1], probe("relu", 1, None), probe("late", 2, 4)]
    version = store.add_version("1", loose)
    fill(store, version, rng, 2)
    store.add_window(version, window(rng, relu_channels=9), START + 2 * WINDOW)
    check = run_check(store, version, SETTINGS, after(3))
    assert check.status == "ok"
    assert set(check.layers) == {"image"}
    assert check.note == (
        "relu not compared: 9 channels, the reference has 8; late not compared: no data in the reference"
    )


def test_all_versions_are_checked_and_kept_with_their_runbooks(store: FakeStore, rng: np.random.Generator) -> None:
    for name in ("1", "2"):
        fill(store, store.add_version(name, PROBES), rng, 3)
    checks = run_all(store, SETTINGS, after(3), {"ReluscopeDeadNeurons": 2})
    assert [check.model_version_id for check in checks] == [1, 2]
    assert [pinned for _, pinned in store.saved_checks] == [{"ReluscopeDeadNeurons": 2}] * 2
    assert run_all(store, SETTINGS, after(3) + timedelta(hours=2), {}) == []


def test_versions_locked_by_another_process_are_left_to_it(store: FakeStore, rng: np.random.Generator) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, rng, 3)
    store.locked_elsewhere.add(version.id)
    assert run_all(store, SETTINGS, after(3), {}) == []
    assert store.saved_checks == []


def test_one_failing_version_does_not_keep_the_others_from_being_checked(
    store: FakeStore, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1", "2"):
        fill(store, store.add_version(name, PROBES), rng, 3)
    assert len(run_all(store, SETTINGS, after(3), {})) == 2
    store.saved_checks.clear()
    probes = store.probes

    def broken(version_id: int) -> list[Probe]:
        if version_id == 1:
            raise RuntimeError("no such table")
        return probes(version_id)

    monkeypatch.setattr(store, "probes", broken)
    later = after(3) + timedelta(seconds=SETTINGS.check_interval)
    with pytest.raises(ExceptionGroup, match="1 of 2 checks failed") as caught:
        run_all(store, SETTINGS, later, {})
    assert [str(error) for error in caught.value.exceptions] == ["no such table"]
    assert [check.model_version_id for check, _ in store.saved_checks] == [2]
    monkeypatch.setattr(store, "probes", probes)  # what failed is still due, the other is not
    assert [check.model_version_id for check in run_all(store, SETTINGS, later, {})] == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("fdr", 0.0), ("min_effect", -1.0), ("min_requests", 0), ("explosion_factor", 1.0), ("min_active_rate", 1.0)],
)
def test_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        CheckSettings(**{field: value})  # type: ignore[arg-type]


def test_a_superseded_version_is_not_checked_any_more(rng: np.random.Generator) -> None:
    store = FakeStore()
    version = store.add_version("1", PROBES)
    store.add_window(version, window(rng), START)
    assert len(run_all(store, SETTINGS, after(1), {})) == 1
    later = after(1) + timedelta(seconds=SETTINGS.check_interval)
    store.superseded.add(version.id)
    assert run_all(store, SETTINGS, later, {}) == []
    store.superseded.clear()
    assert len(run_all(store, SETTINGS, later, {})) == 1
