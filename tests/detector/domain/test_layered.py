"""Windows merged by layer, and references by slot: what comes every morning, or every weekend, is no change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from structlog.testing import capture_logs

from agent.summary import Summary
from detector.checks.check import CheckSettings, prepare
from detector.domain.batches import Span
from detector.domain.finding import Check
from detector.domain.layered import PROGRESS_SECONDS, Layered, Reader, layered
from detector.domain.slots import ANY_DAY, Slot, counted
from detector.references import making
from detector.store import Store
from tests.detector.builders import summary, window
from tests.detector.fakes import FakeStore, probe, rectified, summarise
from tests.detector.samples import check

MONDAY = datetime(2026, 2, 2, tzinfo=UTC)
QUARTER, DAY = timedelta(minutes=15), timedelta(days=1)
PROBES = [probe("image", 0, 1, "input"), probe("relu", 1, 8)]
PER_WINDOW = 400


def test_layers_merge_and_are_estimated_in_two_passes() -> None:
    rng = np.random.default_rng(0)
    parts: list[Mapping[str, Summary]] = [{"relu": summarise(rectified(rng, 200, 4))} for _ in range(5)]
    found = layered(lambda: parts)
    assert found.summaries["relu"].n == 1000
    assert found.effects["relu"].windows == 5


def test_a_long_reading_says_how_far_it_has_come() -> None:
    now = iter(np.arange(99) * PROGRESS_SECONDS / 2)
    spans = [Span(MONDAY + i * QUARTER, MONDAY + (i + 1) * QUARTER, 20) for i in range(4)]
    reader = Reader(lambda span: {"relu": summary(20)}, 6, lambda: float(next(now)))
    with capture_logs() as logs:
        assert reader.layered(spans).summaries["relu"].n == 80
        assert reader.layered(spans[:2]).summaries["relu"].n == 40
    told = [(line["windows_read"], line["windows_to_read"]) for line in logs if line["event"] == "reference.progress"]
    assert told == [(1, 12), (3, 12), (5, 12), (7, 12), (9, 12), (11, 12)]


def rising(store: FakeStore, first: int, days: int, extra: float = 0.0) -> None:
    """Whole days of windows of a quarter of an hour: activations grow from midnight to noon, and fall again."""
    rng = np.random.default_rng(first)
    for i in range(first * 96, (first + days) * 96):
        start = MONDAY + i * QUARTER
        scale = 1.0 + 0.6 * np.sin(np.pi * start.hour / 24) + extra
        values = {
            "image": summarise(rectified(rng, PER_WINDOW, 1, 0, scale)),
            "relu": summarise(rectified(rng, PER_WINDOW, 8, 0.5, scale)),
        }
        store.windows[1].append((Span(start, start + QUARTER, PER_WINDOW), values))


def letters_and_photos(store: FakeStore, first: int, days: int, extra: float = 0.0) -> None:
    """Mornings: letters activate the lower channels, photos the upper ones, and at weekends nobody writes letters."""
    rng = np.random.default_rng(first)
    for day in range(first, first + days):
        for quarter in range(8 * 4, 12 * 4):
            start = MONDAY + day * DAY + quarter * QUARTER
            photo = rng.random(PER_WINDOW) < (1.0 if start.isoweekday() in (6, 7) else 0.1)
            values = rectified(rng, PER_WINDOW, 8, 0.2, 1.0 + extra)
            values[photo, :4] = values[~photo, 4:] = 0.0
            brightness = rectified(rng, PER_WINDOW, 1, 0) + 0.5 * photo[:, None]
            layers = {"image": summarise(brightness), "relu": summarise(values)}
            store.windows[1].append((Span(start, start + QUARTER, PER_WINDOW), layers))


def watched(store: FakeStore, days: range, kept: Mapping[Slot, Layered]) -> list[Check]:
    """Checks at the end of every hour of some days, against the reference with ``kept`` as its only slots."""
    store.slots[1] = dict(kept)
    store.saved_references = [replace(store.saved_references[0], slots=tuple(kept))]
    checks = []
    for hour in range(24 * days.start + 1, 24 * days.stop + 1):
        check, advance = prepare(store, store.known[1], CheckSettings(), MONDAY + timedelta(hours=hour, minutes=1))
        store.save_check(check, {}, advance)
        checks.append(check)
    return checks


def referenced(fill: Callable[[FakeStore, int, int], None], days: int) -> FakeStore:
    """A store whose version has so many days as its reference."""
    store = FakeStore()
    version = store.add_version("1", PROBES, MONDAY)
    fill(store, 0, days)
    making.from_windows(store, version, MONDAY, MONDAY + days * DAY)
    return store


def of_any_day(slots: Mapping[Slot, Layered]) -> dict[Slot, Layered]:
    return {slot: part for slot, part in slots.items() if slot.weekday == ANY_DAY}


def test_the_hours_of_the_day_are_no_change_and_a_shift_in_them_is() -> None:
    def play(extra: float, matched: bool) -> list[Check]:
        store = referenced(rising, 3)
        assert counted(store.slots[1]) == "24 hours"
        rising(store, 3, 1, extra)
        return watched(store, range(3, 4), store.slots[1] if matched else {})

    assert {check.status for check in play(0.0, matched=True)} == {"ok"}
    assert any(check.findings for check in play(0.35, matched=True))
    # Without them the day's own course hides, in the design effect, what is new.
    assert not any(check.findings for check in play(0.35, matched=False))


def test_what_comes_with_every_weekend_is_no_change_and_a_shift_in_it_is() -> None:
    def play(days: range, extra: float, by_weekday: bool) -> list[Check]:
        store = referenced(letters_and_photos, 14)
        slots = store.slots[1]
        assert counted(slots) == "4 hours, 28 weekday hours"
        letters_and_photos(store, days.start, len(days), extra)
        return watched(store, days, slots if by_weekday else of_any_day(slots))

    week, monday = range(14, 21), range(14, 15)
    quiet = play(week, 0.0, by_weekday=True)
    assert not any(check.findings for check in quiet)
    assert quiet[8].note == "compared with Mondays 08:00 UTC"
    # Against all days at that hour the weekends are as silent, for all that differs less than they do is no evidence.
    quiet = play(week, 0.0, by_weekday=False)
    assert not any(check.findings for check in quiet)
    assert quiet[8].note == "compared with all days 08:00 UTC"
    # So what is new on a Monday is told on that Monday, instead of hiding behind the difference to weekends.
    drifts = [finding for check in play(monday, 0.35, by_weekday=True) for finding in check.findings]
    assert {finding.details["compared_with"] for finding in drifts} <= {
        f"Mondays {hour:02}:00 UTC" for hour in range(8, 12)
    }
    assert drifts
    assert not any(check.findings for check in play(monday, 0.35, by_weekday=False))


def test_a_batch_across_a_full_hour_is_compared_with_the_whole_reference() -> None:
    store = referenced(letters_and_photos, 14)
    rng = np.random.default_rng(1)
    for hour in range(12):
        start = MONDAY + 14 * DAY + timedelta(hours=hour, minutes=50)
        layers = {"image": rectified(rng, PER_WINDOW, 1, 0, 1e3), "relu": rectified(rng, PER_WINDOW, 8, 0.2, 1e3)}
        parts = {name: summarise(values) for name, values in layers.items()}
        store.windows[1].append((Span(start, start + QUARTER, PER_WINDOW), parts))
    check, _ = prepare(store, store.known[1], CheckSettings(), MONDAY + 14 * DAY + timedelta(hours=13))
    assert check.note == ""
    assert {finding.details["compared_with"] for finding in check.findings} == {"the whole reference"}


@pytest.fixture
def database(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


def test_slots_are_kept_and_taken_over_by_the_next_version(database: Store) -> None:
    database.ingest("t", 0, None, 1, [window(1), window(2, version="2")])
    first, second = (database.model_version("digits", name) for name in "12")
    assert first is not None
    assert second is not None
    content = {"conv1": summary(seed=3)}
    parts = {Slot(ANY_DAY, 14): layered(lambda: [content] * 3), Slot(1, 14): layered(lambda: [content, content])}
    end = MONDAY + DAY
    made = database.save_reference(first.id, "windows", first.id, MONDAY, end, 20, content, {}, parts.items())
    taken = database.save_reference(
        second.id, "previous_version", first.id, MONDAY, end, 20, content, {}, slots_of=made
    )
    assert [database.reference(version.id).slots for version in (first, second)] == [tuple(parts)] * 2  # type: ignore[union-attr]
    assert [one.slots for one in database.references(first.id)] == [tuple(parts)]
    for reference in (made, taken):
        assert not database.reference_slot(reference, Slot(ANY_DAY, 13)).summaries
        assert not database.reference_slot(reference, Slot(2, 14)).summaries
        for slot, n in ((Slot(ANY_DAY, 14), 60), (Slot(1, 14), 40)):
            kept = database.reference_slot(reference, slot)
            assert kept.summaries["conv1"].n == n
            assert kept.effects["conv1"].values == pytest.approx(parts[slot].effects["conv1"].values)


def test_slots_are_read_and_stored_one_by_one(database: Store) -> None:
    hours = [MONDAY + day * DAY + timedelta(hours=hour) for day in range(14) for hour in (8, 9)]
    starts = [hour + quarter * QUARTER for hour in hours for quarter in range(4)]
    content = summary(400)
    database.ingest("t", 0, None, 1, [window(i, start, content=content, minutes=15) for i, start in enumerate(starts)])
    version = database.model_version("digits", "1")
    assert version is not None
    made = making.from_windows(database, version, MONDAY, MONDAY + 14 * DAY)
    assert counted(made.slots) == "2 hours, 14 weekday hours"
    for slot in made.slots:
        part = database.reference_slot(made.id, slot)
        assert part.summaries["fc1"].n == 400 * 4 * (14 if slot.weekday == ANY_DAY else 2)
        assert part.effects["fc1"].windows == part.summaries["fc1"].n / 400


def test_checks_go_on_with_the_former_reference_while_slots_are_made(database: Store) -> None:
    database.ingest("t", 0, None, 1, [window(1)])
    version = database.model_version("digits", "1")
    assert version is not None
    content = {"conv1": summary()}
    before = database.save_reference(version.id, "windows", version.id, MONDAY, MONDAY + DAY, 20, content)

    def slowly() -> Iterator[tuple[Slot, Layered]]:
        yield Slot(ANY_DAY, 8), layered(lambda: [content])
        in_use = database.reference(version.id)
        assert in_use is not None
        assert in_use.id == before
        database.save_check(replace(check(version.id), reference_id=before), {})  # waits for nothing
        yield Slot(ANY_DAY, 9), layered(lambda: [content])

    made = database.save_reference(version.id, "windows", version.id, MONDAY, MONDAY + DAY, 20, content, {}, slowly())
    assert [(one.id, len(one.slots)) for one in database.references(version.id)] == [(made, 2), (before, 0)]


def test_a_reference_whose_slots_cannot_be_made_is_not_kept(database: Store) -> None:
    database.ingest("t", 0, None, 1, [window(1)])
    version = database.model_version("digits", "1")
    assert version is not None
    content = {"conv1": summary()}
    before = database.save_reference(version.id, "windows", version.id, MONDAY, MONDAY + DAY, 20, content)

    def failing() -> Iterator[tuple[Slot, Layered]]:
        yield Slot(ANY_DAY, 8), layered(lambda: [content])
        raise ValueError("of unlike widths")

    with pytest.raises(ValueError, match="of unlike widths"):
        database.save_reference(version.id, "windows", version.id, MONDAY, MONDAY + DAY, 20, content, {}, failing())
    assert [one.id for one in database.references(version.id)] == [before]
    assert database.reference(version.id).id == before  # type: ignore[union-attr]
