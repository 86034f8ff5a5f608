"""The batch shrinks before the GPU is given up, and both come back, later each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.pressure import Patience, Pressure

PATIENCE = Patience(grow=10, retry=60, longest=240)


def test_the_batch_is_halved_down_to_one_then_the_gpu_is_given_up() -> None:
    pressure = Pressure(32, 1, on_gpu=True, patience=PATIENCE)
    sizes = []
    while (step := pressure.failed(pressure.batch, 0, memory=True)) == "smaller":
        sizes.append(pressure.batch)
        assert pressure.limited and pressure.on_gpu
    assert step == "cpu"
    assert sizes == [16, 8, 4, 2, 1]
    assert (pressure.on_gpu, pressure.batch) == (False, 32)


def test_a_batch_smaller_than_the_limit_halves_from_its_own_size() -> None:
    pressure = Pressure(32, 1, on_gpu=True)
    assert pressure.failed(6, 0, memory=True) == "smaller"
    assert pressure.batch == 3


def test_the_batch_doubles_after_a_while_and_later_after_each_failure() -> None:
    pressure = Pressure(8, 1, on_gpu=True, patience=PATIENCE)
    pressure.failed(8, 100, memory=True)
    for now in (101, 109):
        pressure.ran(now)
        assert pressure.batch == 4
    pressure.ran(110)
    assert pressure.batch == 8
    pressure.failed(8, 111, memory=True)
    pressure.ran(111 + 19)
    assert pressure.batch == 4, "the second wait is twice the first"
    pressure.ran(111 + 20)
    assert pressure.batch == 8


def test_a_long_time_at_the_full_batch_forgives() -> None:
    pressure = Pressure(2, 1, on_gpu=True, patience=PATIENCE)
    for now in (0, 100, 200):
        pressure.failed(2, now, memory=True)
        pressure.ran(now + 99)
    for now in (1000, 2000, 3000):
        pressure.ran(now)
    pressure.failed(2, 3001, memory=True)
    pressure.ran(3001 + 10)
    assert pressure.batch == 2


def test_the_gpu_is_tried_again_later_each_time_and_begins_small() -> None:
    pressure = Pressure(8, 1, on_gpu=True, patience=PATIENCE)
    assert not pressure.due(1e9), "nothing to try: it was never given up"
    assert pressure.failed(1, 0, memory=True) == "cpu"
    assert [pressure.due(now) for now in (59, 60)] == [False, True]
    pressure.refused(60)
    assert [pressure.due(now) for now in (179, 180)] == [False, True]
    pressure.refused(180)
    pressure.refused(420)
    assert [pressure.due(now) for now in (659, 660)] == [False, True], "never longer than the longest"
    pressure.returned(660)
    assert (pressure.on_gpu, pressure.batch, pressure.due(1e9)) == (True, 1, False)
    for now in (670, 680, 690):
        pressure.ran(now)
    assert pressure.batch == 8


def test_a_device_that_fails_for_another_reason_is_given_up_at_once() -> None:
    assert Pressure(32, 1, on_gpu=True).failed(32, 0, memory=False) == "cpu"


def test_a_fixed_batch_is_never_halved() -> None:
    assert Pressure(16, 16, on_gpu=True).failed(16, 0, memory=True) == "cpu"


def test_on_the_cpu_the_smallest_batch_is_the_end() -> None:
    pressure = Pressure(2, 1, on_gpu=False)
    assert pressure.failed(2, 0, memory=True) == "smaller"
    assert pressure.failed(1, 0, memory=True) == "give_up"


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match="batch of 3 to 2"):
        Pressure(2, 3, on_gpu=True)


@given(st.lists(st.tuples(st.sampled_from(["ran", "memory", "device", "retry"]), st.floats(0, 500)), max_size=60))
def test_the_batch_stays_in_its_bounds_whatever_happens(events: list[tuple[str, float]]) -> None:
    pressure, now = Pressure(32, 2, on_gpu=True, patience=PATIENCE), 0.0
    for event, seconds in events:
        now += seconds
        if event == "ran":
            pressure.ran(now)
        elif event == "retry":
            if pressure.due(now):
                pressure.returned(now)
        else:
            pressure.failed(pressure.batch, now, memory=event == "memory")
        assert 2 <= pressure.batch <= 32
        assert not (pressure.on_gpu and pressure.due(now))
