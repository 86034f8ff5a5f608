"""Turns by time used, and levels that the light leave to the heavy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.budget.shares import FairShares, ModelKey, level

A, B, C = ("a", "1"), ("b", "1"), ("a", "2")


def test_time_is_shared_equally_whatever_a_turn_takes() -> None:
    shares, used = FairShares(), {A: 0.0, B: 0.0, C: 0.0}
    for _ in range(1000):
        key = shares.choose([A, B, C])
        seconds = {A: 1.0, B: 0.01, C: 0.2}[key]
        shares.charge(key, seconds)
        used[key] += seconds
    assert max(used.values()) - min(used.values()) <= 1.0


def test_the_idle_save_up_nothing_and_pay_for_nothing() -> None:
    shares = FairShares()
    for _ in range(100):
        shares.charge(shares.choose([A]), 1.0)
    turns = []
    for _ in range(10):  # B comes for the first time
        turns.append(shares.choose([A, B]))
        shares.charge(turns[-1], 1.0)
    assert turns.count(B) in (5, 6), "neither a hundred turns in a row, nor behind A's hundred"
    shares.charge(B, 1000.0)
    for _ in range(2000):
        shares.charge(shares.choose([A]), 1.0)
    assert shares.choose([A, B]) == B, "long ago"


def test_versions_that_are_gone_are_forgotten() -> None:
    shares = FairShares()
    for number in range(1000):
        shares.charge(shares.choose([("m", str(number))]), 1.0)
        shares.charge(shares.choose([A]), 1.0)
    assert len(shares._used) < 10


def test_the_light_leave_their_part_to_the_heavy() -> None:
    assert level({A: 0.1, B: 5.0, C: 5.0}, 1.0) == pytest.approx(0.45)
    assert level({A: 5.0}, 1.0) == 1.0
    assert level({A: 0.1, B: 0.2}, 1.0) == pytest.approx(0.9), "the largest may grow into what is left"
    assert level({}, 1.0) == 1.0


@given(
    st.dictionaries(st.tuples(st.text(max_size=2), st.text(max_size=2)), st.floats(0, 100), min_size=1),
    st.floats(0.001, 10),
)
def test_a_level_keeps_the_capacity_and_is_no_less_than_an_equal_share(
    demands: dict[ModelKey, float], capacity: float
) -> None:
    found = level(demands, capacity)
    assert sum(min(demand, found) for demand in demands.values()) <= capacity * (1 + 1e-9)
    assert found >= capacity / len(demands) * (1 - 1e-9)
