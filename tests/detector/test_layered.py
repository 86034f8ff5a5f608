"""References by hour of the day: what comes with every morning is no change."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from agent.summary import Summary
from detector import reference_choice
from detector.batches import Span
from detector.check import CheckSettings, prepare
from detector.finding import Check
from detector.layered import HOUR_WINDOWS, hour_of, hours, layered
from detector.store import Store
from tests.detector.builders import summary, window
from tests.detector.fakes import FakeStore, probe, rectified, summarise

MIDNIGHT = datetime(2026, 2, 1, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
PROBES = [probe("image", 0, 1, "input"), probe("relu", 1, 8)]


def spans(count: int, n: int = 400) -> list[Span]:
    return [Span(MIDNIGHT + i * QUARTER, MIDNIGHT + (i + 1) * QUARTER, n) for i in range(count)]


def test_hours_need_a_day_and_enough_of_their_own() -> None:
    assert hours(spans(20)) == {}
    assert hours([]) == {}
    covered = hours(spans(4 * 24 * 2))
    assert list(covered) == list(range(24))
    assert all(len(inside) == 8 for inside in covered.values())
    assert hours(spans(4 * 24 * 2, n=100)) == {}  # 800 requests each
    ragged = [*spans(4 * 24)[: HOUR_WINDOWS - 1], *spans(4 * 24 + 8)[40:]]
    assert 0 in hours(ragged)  # two of the first day and four of the second
    assert 5 not in hours(ragged)


def test_a_window_across_a_full_hour_belongs_to_none() -> None:
    assert hour_of(Span(MIDNIGHT, MIDNIGHT + timedelta(hours=1), 1)) == 0
    assert hour_of(Span(MIDNIGHT + QUARTER, MIDNIGHT + timedelta(hours=1, seconds=1), 1)) is None
    elsewhere = timezone(timedelta(hours=5, minutes=30))
    local = (MIDNIGHT + QUARTER).astimezone(elsewhere)
    assert hour_of(Span(local, local + QUARTER, 1)) == 0


def test_layers_merge_and_are_estimated_in_two_passes() -> None:
    rng = np.random.default_rng(0)
    parts: list[Mapping[str, Summary]] = [{"relu": summarise(rectified(rng, 200, 4))} for _ in range(5)]
    found = layered(lambda: parts)
    assert found.summaries["relu"].n == 1000
    assert found.effects["relu"].windows == 5


def day(store: FakeStore, first: int, windows: int, extra: float = 0.0, seed: int = 0) -> None:
    """Windows of a quarter of an hour: activations grow from midnight to noon, and fall again."""
    rng = np.random.default_rng(seed + first)
    for i in range(first, first + windows):
        start = MIDNIGHT + i * QUARTER
        scale = 1.0 + 0.6 * np.sin(np.pi * start.hour / 24) + extra
        values = {
            "image": summarise(rectified(rng, 400, 1, 0, scale)),
            "relu": summarise(rectified(rng, 400, 8, 0.5, scale)),
        }
        store.windows[1].append((Span(start, start + QUARTER, 400), values))


def play(days: int, extra: float, matched: bool) -> list[Check]:
    """Three days make the reference; then checks of the time that follows."""
    store = FakeStore()
    version = store.add_version("1", PROBES, MIDNIGHT)
    day(store, 0, 3 * 96)
    settings = CheckSettings(reference_requests=3 * 96 * 400)
    until = MIDNIGHT + timedelta(days=3, minutes=1)
    reference_choice.from_first_requests(store, version, settings.reference_requests, until)
    assert len(store.hours[1]) == 24
    if not matched:
        store.hours[1] = {}
    day(store, 3 * 96, days * 96, extra)
    checks = []
    for i in range(4 * 6, days * 96 + 1, 4 * 6):  # every six hours
        check, advance = prepare(store, version, settings, until + i * QUARTER)
        store.save_check(check, {}, advance)
        checks.append(check)
    return checks


def test_the_hours_of_the_day_are_no_change_and_a_shift_in_them_is() -> None:
    assert [check.status for check in play(2, 0.0, matched=True)] == ["ok"] * 8
    assert any(check.findings for check in play(1, 0.35, matched=True))
    # Without them the day's own course hides, in the design effect, what is new.
    assert not any(check.findings for check in play(1, 0.35, matched=False))


def test_hours_are_kept_and_taken_over_by_the_next_version(database_url: str) -> None:
    store = Store(database_url)
    store.ingest("t", 0, None, 1, [window(1), window(2, version="2")])
    first, second = (store.model_version("digits", name) for name in "12")
    assert first is not None
    assert second is not None
    content = {"conv1": summary(seed=3)}
    hour = layered(lambda: [content, content])
    begin, end = MIDNIGHT, MIDNIGHT + timedelta(days=1)
    made = store.save_reference(first.id, "windows", first.id, begin, end, 20, content, {}, {14: hour})
    taken = store.save_reference(second.id, "previous_version", first.id, begin, end, 20, content, {}, None, made)
    for reference in (made, taken):
        assert store.reference_hour(reference, 13) is None
        kept = store.reference_hour(reference, 14)
        assert kept is not None
        assert kept.summaries["conv1"].n == 40
        assert kept.effects["conv1"].values == pytest.approx(hour.effects["conv1"].values)
    store.close()
