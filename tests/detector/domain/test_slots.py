"""Slots: which hours have a reference of their own, and which of them a batch is compared with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from detector.domain.batches import Batch, Span
from detector.domain.slots import ANY_DAY, HOUR_WINDOWS, Slot, counted, covered, matching, slots_of

SUNDAY = datetime(2026, 2, 1, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
DAY = 4 * 24


def spans(count: int, n: int = 400) -> list[Span]:
    return [Span(SUNDAY + i * QUARTER, SUNDAY + (i + 1) * QUARTER, n) for i in range(count)]


def every_day(hour: int) -> Slot:
    return Slot(ANY_DAY, hour)


def test_hours_need_a_day_and_enough_of_their_own() -> None:
    assert covered(spans(20)) == {}
    assert covered([]) == {}
    found = covered(spans(2 * DAY))
    assert list(found) == [every_day(hour) for hour in range(24)]
    assert all(len(inside) == 8 for inside in found.values())
    assert covered(spans(2 * DAY, n=100)) == {}  # 800 requests each
    ragged = [*spans(DAY)[: HOUR_WINDOWS - 1], *spans(DAY + 8)[40:]]
    assert every_day(0) in covered(ragged)  # two of the first day and four of the second
    assert every_day(5) not in covered(ragged)


def test_hours_of_a_weekday_need_two_of_its_dates() -> None:
    assert counted(covered(spans(7 * DAY))) == "24 hours"
    eight_days = covered(spans(8 * DAY))
    assert list(eight_days)[24:] == [Slot(7, hour) for hour in range(24)]  # of Sundays alone there are two
    assert {span.start.day for span in eight_days[Slot(7, 5)]} == {1, 8}
    fortnight = covered(spans(14 * DAY))
    assert counted(fortnight) == "24 hours, 168 weekday hours"
    assert counted(covered(spans(14 * DAY), weekday_dates=3)) == "24 hours"
    assert {len(inside) for slot, inside in fortnight.items() if slot.weekday != ANY_DAY} == {8}


def test_hours_of_a_weekday_need_as_many_windows_and_requests_as_hours() -> None:
    few = covered(spans(14 * DAY, n=100))  # 5,600 requests of an hour, 800 of a weekday's
    assert counted(few) == "24 hours"
    one_of_each_date = [span for span in spans(14 * DAY, n=4000) if span.start.minute == 0]
    assert counted(covered(one_of_each_date)) == "24 hours"


def test_a_span_lies_in_its_weekday_and_hour_and_in_the_hour_of_any_day() -> None:
    first = Span(SUNDAY, SUNDAY + timedelta(hours=1), 1)
    assert slots_of(first) == (Slot(7, 0), every_day(0))
    assert slots_of(Span(SUNDAY + QUARTER, SUNDAY + timedelta(hours=1, seconds=1), 1)) == ()
    assert slots_of(Span(SUNDAY, SUNDAY + timedelta(days=1, hours=1), 1)) == ()
    elsewhere = timezone(timedelta(hours=5, minutes=30))  # where it is Sunday already
    local = (SUNDAY - 4 * QUARTER).astimezone(elsewhere)
    assert slots_of(Span(local, local + QUARTER, 1)) == (Slot(6, 23), every_day(23))


def test_the_most_specific_slot_is_compared_with() -> None:
    batch = Batch(SUNDAY + QUARTER, SUNDAY + 3 * QUARTER, 800, 2)
    across = Batch(SUNDAY + QUARTER, SUNDAY + 5 * QUARTER, 1600, 4)
    slots = (every_day(0), every_day(1), Slot(7, 0))
    assert matching(slots, batch) == Slot(7, 0)
    assert matching(slots[:2], batch) == every_day(0)
    assert matching(slots[1:2], batch) is None
    assert matching(slots, across) is None


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ([], "none"),
        ([Slot(ANY_DAY, 3)], "1 hour"),
        ([Slot(ANY_DAY, 3), Slot(1, 3), Slot(1, 4)], "1 hour, 2 weekday hours"),
        ([Slot(7, 0)], "1 weekday hour"),
    ],
)
def test_slots_are_counted_in_words(slots: list[Slot], words: str) -> None:
    assert counted(slots) == words


def test_slots_have_names_that_are_read_at_once() -> None:
    assert [str(slot) for slot in (Slot(1, 8), Slot(7, 23), every_day(0))] == [
        "Mondays 08:00 UTC",
        "Sundays 23:00 UTC",
        "all days 00:00 UTC",
    ]
