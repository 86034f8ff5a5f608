"""Windows line up with the wall clock, close after their grace and keep every request exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery.windowing import Accumulator
from agent.instrument.pooled import Pooled
from agent.wire import Probe

PROBES = (Probe("relu", "Relu", "t", 2, 1, "activation", 0, True),)


def pooled(rows: int) -> dict[str, Pooled]:
    values = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return {"relu": Pooled(values, values, (values > 0).astype(np.float32))}


def add(windows: Accumulator, arrived: list[int], version: str = "1") -> None:
    windows.add("m", version, "d", PROBES, pooled(len(arrived)), np.array(arrived, np.int64))


def test_requests_fall_into_aligned_windows() -> None:
    windows = Accumulator(window_ms=1000, grace_ms=200)
    add(windows, [999, 1000, 1999, 2000])
    assert windows.close(1199) == []
    spans = [(c.slot.start_ms, c.slot.end_ms, c.summaries["relu"].n) for c in windows.close(2200)]
    assert spans == [(0, 1000, 1), (1000, 2000, 2)]
    assert [c.slot.start_ms for c in windows.drain()] == [2000]
    assert windows.drain() == []


def test_versions_have_windows_of_their_own() -> None:
    windows = Accumulator(1000, 0)
    add(windows, [1, 2])
    add(windows, [3], version="2")
    assert [(c.slot.version, c.summaries["relu"].n) for c in windows.drain()] == [("1", 2), ("2", 1)]


def test_late_requests_reopen_their_window() -> None:
    windows = Accumulator(1000, 0)
    add(windows, [10])
    assert len(windows.close(1000)) == 1
    add(windows, [20])
    assert [c.summaries["relu"].n for c in windows.close(1000)] == [1]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200), st.integers(1, 70), st.integers(1, 9))
def test_every_request_is_counted_once(arrived: list[int], buffer_rows: int, batch: int) -> None:
    windows = Accumulator(1000, 0, buffer_rows)
    for start in range(0, len(arrived), batch):
        add(windows, arrived[start : start + batch])
    assert sum(c.summaries["relu"].n for c in windows.drain()) == len(arrived)


def test_a_window_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="no span of time"):
        Accumulator(0, 0)
