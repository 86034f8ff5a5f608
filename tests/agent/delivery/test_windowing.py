"""Windows line up with the wall clock, close after their grace and keep every request exactly once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent import summary, wire
from agent.delivery.drops import ProbeDrop, ProbeDrops
from agent.delivery.outbox import Outbox
from agent.delivery.sender import Sender
from agent.delivery.widths import Widths
from agent.delivery.windowing import Accumulator, ClosedWindow
from agent.instrument.pooled import Pooled
from agent.metrics import AgentMetrics
from agent.summary import Summary
from agent.wire import Probe

PROBES = (Probe("relu", "Relu", "t", 2, 1, "activation", 0, True),)
TWO = (*PROBES, Probe("free", "Output", "u", None, 1, "output", 1, False))


def pooled(rows: int) -> dict[str, Pooled]:
    values = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return {"relu": Pooled(values, values, (values > 0).astype(np.float32))}


def add(windows: Accumulator, arrived: list[int], version: str = "1") -> None:
    windows.add("m", version, "d", PROBES, pooled(len(arrived)), np.array(arrived, np.int64))


def test_requests_fall_into_aligned_windows() -> None:
    windows = Accumulator(window_ms=1000, grace_ms=200)
    add(windows, [999, 1000, 1999, 2000])
    assert list(windows.close(1199)) == []
    spans = [(c.slot.start_ms, c.slot.end_ms, c.summaries["relu"].n) for c in windows.close(2200)]
    assert spans == [(0, 1000, 1), (1000, 2000, 2)]
    assert [c.slot.start_ms for c in windows.drain()] == [2000]
    assert list(windows.drain()) == []


def test_versions_have_windows_of_their_own() -> None:
    windows = Accumulator(1000, 0)
    add(windows, [1, 2])
    add(windows, [3], version="2")
    assert [(c.slot.version, c.summaries["relu"].n) for c in windows.drain()] == [("1", 2), ("2", 1)]


def test_late_requests_reopen_their_window() -> None:
    windows = Accumulator(1000, 0)
    add(windows, [10])
    assert len(list(windows.close(1000))) == 1
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


def wide(rows: int, width: int) -> dict[str, Pooled]:
    """Values of both probes of `TWO`, the second of that width."""
    values = np.ones((rows, width), np.float32)
    return pooled(rows) | {"free": Pooled(values, values, values)}


def arrivals(*at: int) -> np.ndarray:
    return np.array(at, np.int64)


class Dropping:
    """An accumulator, and what it said it dropped."""

    def __init__(self, buffer_rows: int = 64) -> None:
        self.drops: list[ProbeDrop] = []
        self.windows = Accumulator(1000, 0, buffer_rows, self.drops.append)

    def add(self, width: int, *at: int, version: str = "1") -> None:
        self.windows.add("m", version, "d", TWO, wide(len(at), width), arrivals(*at))

    def counts(self) -> list[dict[str, int]]:
        return [{name: one.n for name, one in closed.summaries.items()} for closed in self.windows.drain()]

    def lost(self) -> list[tuple[str, str, int]]:
        return [(drop.probe, drop.reason, drop.requests) for drop in self.drops]


@pytest.mark.parametrize("buffer_rows", [1, 64])
def test_a_probe_whose_width_changes_is_dropped_from_all_open_windows(buffer_rows: int) -> None:
    here = Dropping(buffer_rows)
    here.add(3, 10, 20, 1010)
    here.add(5, 30)
    here.add(3, 40)
    here.add(3, 50, version="2")
    assert here.counts() == [{"relu": 4}, {"relu": 1, "free": 1}, {"relu": 1}]
    assert here.lost() == [("free", "width", 2), ("free", "width", 1), ("free", "width", 1), ("free", "width", 1)]


def test_a_probe_whose_width_is_not_the_declared_one_is_dropped() -> None:
    here = Dropping()
    values = np.ones((1, 7), np.float32)
    here.windows.add("m", "1", "d", TWO, {"relu": Pooled(values, values, values)}, arrivals(1))
    assert here.counts() == [{}]
    assert here.lost() == [("relu", "width", 1)]
    assert "it has 7 channels, the model declares 2" in here.drops[0].message


@pytest.mark.parametrize(("mean", "fraction"), [((2, 2), (1, 2)), ((1, 2), (1, 2)), ((2,), (2,)), ((2, 2), (2, 3))])
def test_values_that_do_not_fit_the_batch_are_dropped(mean: tuple[int, ...], fraction: tuple[int, ...]) -> None:
    here = Dropping()
    values = wide(2, 3) | {"relu": Pooled(np.ones(mean), np.ones(mean), np.ones(fraction))}
    here.windows.add("m", "1", "d", TWO, values, arrivals(1, 2))
    assert here.counts() == [{"free": 2}]
    assert here.lost() == [("relu", "shape", 2)]


def test_a_summary_that_fails_costs_its_probe_and_its_window_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = summary.from_pooled

    def failing(mean: np.ndarray, maximum: np.ndarray, fraction: np.ndarray) -> Summary:
        if mean.shape[1] == 3 and len(mean) == 2:
            raise ArithmeticError("12345678901 is a value")
        return whole(mean, maximum, fraction)

    monkeypatch.setattr(summary, "from_pooled", failing)
    here = Dropping(buffer_rows=2)
    here.add(3, 10, 20)
    here.add(3, 30, 1010)
    assert here.counts() == [{"relu": 3}, {"relu": 1, "free": 1}]
    assert here.lost() == [("free", "summary", 2), ("free", "summary", 1)]
    assert "ArithmeticError" in here.drops[0].message
    assert "12345678901" not in here.drops[0].message


def test_a_window_whose_delivery_fails_is_still_there() -> None:
    windows = Accumulator(1000, 0)
    add(windows, [10, 1010, 1020])

    def deliver(closed: ClosedWindow) -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        for closed in windows.close(5000):
            deliver(closed)
    add(windows, [30])
    assert [c.summaries["relu"].n for c in windows.close(5000)] == [2, 2]
    assert list(windows.close(5000)) == []


def test_a_summary_that_no_message_takes_costs_its_probe_only(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", 1 << 20)
    drops: list[ProbeDrop] = []
    sender = Sender(outbox, "pod-1", 1 << 20, on_drop=drops.append)
    windows = Accumulator(1000, 0)
    windows.add("m", "1", "d", TWO, wide(2, 3), arrivals(1001, 1002))
    (closed,) = windows.drain()
    object.__setattr__(closed.summaries["free"], "n", -1)
    sender.windows([closed])
    (sent,) = [wire.decode(item.payload).body for item in outbox.pending(10)]
    outbox.close()
    assert isinstance(sent, wire.Window)
    assert [item.probe.name for item in sent.probes] == ["relu"]
    assert [(drop.probe, drop.reason) for drop in drops] == [("free", "encode")]


def test_a_drop_is_counted_always_and_said_once() -> None:
    metrics = AgentMetrics()
    drops = ProbeDrops(metrics)
    with capture_logs() as logs:
        for version in ("1", "1", "2"):
            drops(ProbeDrop("m", version, "free", "width", 5, "why"))
    assert [(entry["event"], entry["version"]) for entry in logs] == [("probe.dropped", "1"), ("probe.dropped", "2")]
    labels = {"model": "m", "reason": "width"}
    assert metrics.registry.get_sample_value("reluscope_agent_probe_dropped_total", labels) == 15


def test_widths_of_the_versions_seen_last_are_kept() -> None:
    widths = Widths(most_versions=2)
    free = TWO[1]
    for digest in ("a", "b", "c"):
        assert widths.fault(("m", "1", digest), free, 3) is None
    assert widths.fault(("m", "1", "c"), free, 4) is not None
    assert widths.fault(("m", "1", "c"), free, 3) is not None, "what changed once is no channel any more"
    assert widths.fault(("m", "1", "a"), free, 4) is None, "forgotten"
