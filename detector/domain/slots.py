"""Slots: the hours that come again, every day or every week, each with a reference of its own where it is covered.

What comes with every morning is no change, and what comes with every Monday morning is none either. A batch of windows
is compared with the most specific slot that its reference covers: its weekday and hour, else its hour, else the whole.
All hours are UTC.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta

from detector.domain.batches import Batch, Span

HOUR_REQUESTS = 1000
HOUR_WINDOWS = 3
"""What a slot needs for a reference of its own."""
WEEKDAY_DATES = 2
"""Dates on which a slot of one weekday must have windows unless told otherwise: one Monday is not Mondays."""
LEAST_SPAN = timedelta(hours=24)
"""A reference that is shorter has seen no hour but in passing, and none again."""
ANY_DAY = 0
_DAYS = ("all days", "Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays", "Sundays")


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """An hour of the day, of one weekday or of any."""

    weekday: int
    """As in ISO 8601: 1 is Monday, 7 is Sunday; `ANY_DAY` where all days count."""
    hour: int
    """0 to 23."""

    def __str__(self) -> str:
        """ "Mondays 08:00 UTC", "all days 08:00 UTC"."""
        return f"{_DAYS[self.weekday]} {self.hour:02}:00 UTC"


def slots_of(span: Span | Batch) -> tuple[Slot, ...]:
    """The slots in which a span lies, the most specific first; none where it lies across a full hour."""
    start, last = span.start.astimezone(UTC), (span.end - timedelta(microseconds=1)).astimezone(UTC)
    if (start.date(), start.hour) != (last.date(), last.hour):
        return ()
    return Slot(start.isoweekday(), start.hour), Slot(ANY_DAY, start.hour)


def matching(slots: Container[Slot], span: Span | Batch) -> Slot | None:
    """The most specific of a reference's ``slots`` in which a span lies; None where the whole is all there is."""
    return next((slot for slot in slots_of(span) if slot in slots), None)


def covered(spans: Sequence[Span], weekday_dates: int = WEEKDAY_DATES) -> dict[Slot, list[Span]]:
    """The windows, in their order, of each slot that has enough of them, hours of any day first.

    A slot of one weekday needs windows on ``weekday_dates`` dates. Empty where the spans cover less than `LEAST_SPAN`.
    A window may belong to two slots, or to none.
    """
    if not spans or max(span.end for span in spans) - min(span.start for span in spans) < LEAST_SPAN:
        return {}
    found: dict[Slot, list[Span]] = {}
    for span in spans:
        for slot in slots_of(span):
            found.setdefault(slot, []).append(span)
    return {slot: inside for slot, inside in sorted(found.items()) if _enough(slot, inside, weekday_dates)}


def counted(slots: Iterable[Slot]) -> str:
    """ "24 hours, 12 weekday hours"; "none" where there are no slots."""
    slots = list(slots)
    by_kind = {
        "hour": sum(slot.weekday == ANY_DAY for slot in slots),
        "weekday hour": sum(slot.weekday != ANY_DAY for slot in slots),
    }
    told = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in by_kind.items() if count]
    return ", ".join(told) or "none"


def _enough(slot: Slot, inside: Sequence[Span], weekday_dates: int) -> bool:
    dates = {span.start.astimezone(UTC).date() for span in inside}
    return (
        len(inside) >= HOUR_WINDOWS
        and sum(span.n for span in inside) >= HOUR_REQUESTS
        and (slot.weekday == ANY_DAY or len(dates) >= weekday_dates)
    )
