"""Check turns: every model version has one check per interval, whoever runs it.

Due times lie on a grid: the multiples of the interval since the Unix epoch, the same for all detectors. A check answers
to the due time that is stored for its version, and stores the next one, in its own transaction and only if nobody has
moved it meanwhile. So two checks of a version never answer to one due time, and D days have at most D / interval of
them, which is what paired tests divide their level by. What a killed detector has not stored is still due.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to one check of a model version, valid only while ``before`` is what is stored."""

    before: datetime | None
    """The due time that is answered to; None before a version's first check."""
    next_due: datetime


def turn_at(due: datetime | None, now: datetime, interval: float) -> Turn | None:
    """The turn of a version that is due at ``due``; None where it is not due yet.

    A due time further ahead than one ``interval`` (seconds) was set with a longer one, and counts as now.
    """
    step = timedelta(seconds=interval)
    if due is not None and now < due <= now + step:
        return None
    return Turn(due, _EPOCH + ((now - _EPOCH) // step + 1) * step)
