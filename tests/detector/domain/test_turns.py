"""Due times: on one grid for all detectors, and no more than the alarm budget counts on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.domain.turns import turn_at

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize("late", [0, 1, 59.999])
def test_due_times_lie_on_a_grid_however_late_a_check_is(late: float) -> None:
    turn = turn_at(None, NOON + timedelta(seconds=late), 60)
    assert turn is not None
    assert (turn.before, turn.next_due) == (None, NOON + MINUTE)
    assert turn_at(turn.next_due, NOON + timedelta(seconds=59.999), 60) is None
    following = turn_at(turn.next_due, NOON + 3 * MINUTE, 60)  # two due times were missed: they are not made up for
    assert following is not None
    assert (following.before, following.next_due) == (NOON + MINUTE, NOON + 4 * MINUTE)


def test_a_due_time_set_with_a_longer_interval_does_not_hold_checks_back() -> None:
    tomorrow = turn_at(None, NOON, 86_400)
    assert tomorrow is not None
    assert turn_at(tomorrow.next_due, NOON, 60) is not None


@given(
    st.lists(st.integers(0, 3600 * 10), min_size=1, max_size=200).map(sorted),
    st.sampled_from([0.1, 3.0, 7.5, 60.0]),
)
def test_never_more_checks_than_due_times(tenths: list[int], interval: float) -> None:
    """Whenever detectors look, in an hour there are at most as many checks as intervals begin in it."""
    due, checks = None, 0
    for tenth in tenths:
        if (turn := turn_at(due, NOON + timedelta(seconds=tenth / 10), interval)) is not None:
            assert turn.next_due > NOON + timedelta(seconds=tenth / 10)
            due, checks = turn.next_due, checks + 1
    assert checks <= 3600 / interval + 1
