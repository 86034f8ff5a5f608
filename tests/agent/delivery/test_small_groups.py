"""Nothing of too few requests leaves; what waits is counted once, and what never leaves is counted too."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import summary
from agent.delivery.outbox import Outbox
from agent.delivery.sender import Sender
from agent.delivery.small_groups import MinGroup, Passed, SmallWindows
from agent.delivery.windowing import ClosedWindow, Slot
from agent.metrics import AgentMetrics
from agent.summary import Summary
from agent.wire import Probe

VERSION = ("m", "1", "d")
PROBES = tuple(Probe(name, "Relu", f"t_{name}", 2, 1, "activation", place, True) for place, name in enumerate("abc"))
NAMES = [probe.name for probe in PROBES]


def requests(n: int, channels: int = 2, seed: int = 0) -> Summary:
    values = np.random.default_rng(seed).lognormal(size=(n, channels))
    return summary.from_pooled(values, values, np.ones_like(values))


def window(number: int, version: str = "1", **sizes: int) -> ClosedWindow:
    """Window ``number`` of a second each, with so many requests of each probe."""
    slot = Slot("m", version, "d", number * 1000, number * 1000 + 1000)
    return ClosedWindow(slot, PROBES, {name: requests(n, seed=number) for name, n in sizes.items()})


def pass_on(small: SmallWindows, closed: ClosedWindow) -> Passed:
    """As where delivery succeeds."""
    passed = small.weigh(closed)
    small.settle(passed)
    return passed


def left(passed: Passed) -> list[tuple[int, dict[str, int]]]:
    return [(one.slot.start_ms // 1000, {name: s.n for name, s in one.summaries.items()}) for one in passed.windows]


def test_too_few_requests_are_told_of_in_the_next_window() -> None:
    small = SmallWindows(MinGroup(20))
    first = pass_on(small, window(0, a=30, b=12))
    assert left(first) == [(0, {"a": 30})]
    assert first.carried == {"b": 12}
    second = pass_on(small, window(1, a=25, b=9))
    assert left(second) == [(1, {"a": 25, "b": 21})], "once, and in a window that is nobody else's"
    assert second.carried == {}
    assert left(pass_on(small, window(2, a=25, b=20))) == [(2, {"a": 25, "b": 20})]


def test_what_was_not_delivered_is_weighed_again() -> None:
    """A window stays with the agent until it is in the outbox; its requests count once all the same."""
    small = SmallWindows(MinGroup(20))
    pass_on(small, window(0, a=15, b=15))
    lost, again = small.weigh(window(1, a=3, b=8)), small.weigh(window(1, a=3, b=8))
    assert left(lost) == left(again) == [(1, {"b": 23})]
    small.settle(again)
    assert left(pass_on(small, window(2, a=2, b=19))) == [(2, {"a": 20})]


def test_what_leaves_is_what_came() -> None:
    small, parts = SmallWindows(MinGroup(20)), [window(number, a=8) for number in range(3)]
    passed = [pass_on(small, part) for part in parts]
    assert [left(one) for one in passed] == [[], [], [(2, {"a": 24})]]
    [sent] = passed[2].windows
    whole = reduce(summary.merge, [part.summaries["a"] for part in parts])
    np.testing.assert_array_equal(sent.summaries["a"].mean, whole.mean)
    assert sent.summaries["a"].mean_histogram.same_as(whole.mean_histogram)


def test_probes_whose_turn_it_is_not_wait_for_it() -> None:
    """Groups of probes take turns, so each has requests of its own."""
    small = SmallWindows(MinGroup(20))
    assert left(pass_on(small, window(0, a=15))) == []
    assert left(pass_on(small, window(1, b=15))) == []
    assert left(pass_on(small, window(2, a=15))) == [(2, {"a": 30})]
    assert left(pass_on(small, window(3, b=15))) == [(3, {"b": 30})]


def test_versions_do_not_mix() -> None:
    small = SmallWindows(MinGroup(20))
    pass_on(small, window(0, a=15))
    assert left(pass_on(small, window(1, version="2", a=15))) == []
    assert left(pass_on(small, window(2, a=15))) == [(2, {"a": 30})]


def test_requests_replayed_late_are_not_told_of_in_an_earlier_window() -> None:
    small = SmallWindows(MinGroup(20))
    pass_on(small, window(5, a=15))
    assert left(pass_on(small, window(4, a=10))) == [(5, {"a": 25})]


def test_what_rests_on_few_values_is_coarse() -> None:
    column = np.zeros((20, 1))
    column[3] = 123.456
    closed = ClosedWindow(window(0).slot, PROBES, {"a": summary.from_pooled(column, column, (column > 0) * 1.0)})
    [sent] = pass_on(SmallWindows(MinGroup(20)), closed).windows
    assert sent.summaries["a"].mean[0] * 20 != pytest.approx(123.456, rel=1e-4)


def test_what_is_too_small_in_the_end_is_withheld_by_version() -> None:
    small = SmallWindows(MinGroup(20))
    pass_on(small, window(0, a=3, b=19))
    pass_on(small, window(0, version="2", a=4))
    [one] = small.withhold("version_gone", lambda version: version == VERSION)
    assert (one.version, one.reason, one.requests) == (VERSION, "version_gone", {"a": 3, "b": 19})
    assert left(pass_on(small, window(1, a=19))) == [], "what was withheld is forgotten"
    assert {one.version for one in small.withhold("stopping", lambda version: True)} == {VERSION, ("m", "2", "d")}
    assert small.withhold("stopping", lambda version: True) == []


def test_nothing_waits_for_ever() -> None:
    small = SmallWindows(MinGroup(20, carry_seconds=3))
    pass_on(small, window(0, a=10))
    pass_on(small, window(2, a=2))
    passed = pass_on(small, window(4, a=15))
    assert [(one.reason, one.requests) for one in passed.withheld] == [("stale", {"a": 12})]
    assert left(passed) == []
    assert left(pass_on(small, window(5, a=5))) == [(5, {"a": 20})]


def test_a_probe_of_another_width_costs_what_waited_for_it_alone() -> None:
    small = SmallWindows(MinGroup(20))
    pass_on(small, window(0, a=10, b=10))
    wide = ClosedWindow(window(1).slot, PROBES, {"a": requests(25, channels=3), "b": requests(10)})
    passed = pass_on(small, wide)
    assert [(one.reason, one.requests) for one in passed.withheld] == [("width_changed", {"a": 10})]
    assert left(passed) == [(1, {"a": 25, "b": 20})]


def test_a_group_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        MinGroup(0)


sizes = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 40), min_size=1)
lives = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("12"), sizes), max_size=30)


@given(lives, st.integers(1, 50), st.integers(0, 8))
def test_every_request_leaves_once_in_company_or_is_counted(
    life: list[tuple[int, str, dict[str, int]]], least: int, carry_seconds: int
) -> None:
    small = SmallWindows(MinGroup(least, carry_seconds))
    came = sum(n for _, _, sized in life for n in sized.values())
    told = withheld = 0
    for number, version, sized in life:
        passed = pass_on(small, window(number, version, **sized))
        for one in passed.windows:
            assert (one.slot.start_ms % 1000, one.slot.end_ms - one.slot.start_ms) == (0, 1000)
            assert one.slot.start_ms >= number * 1000
            assert one.slot.version == version
            assert all(part.n >= least for part in one.summaries.values())
            told += sum(part.n for part in one.summaries.values())
        withheld += sum(sum(one.requests.values()) for one in passed.withheld)
        assert all(passed.carried[name] == sized[name] for name in passed.carried)
    withheld += sum(sum(one.requests.values()) for one in small.withhold("stopping", lambda version: True))
    assert told + withheld == came


def test_heartbeats_tell_what_is_held_back(tmp_path: Path) -> None:
    """So that an agent with little to tell of is not taken for one that sees nothing."""
    metrics = AgentMetrics()
    sender = Sender(Outbox(tmp_path / "outbox.db", 1 << 20), "pod-1", 1 << 20, metrics=metrics)
    sender.windows([window(0, a=7, b=5), window(1, a=9)])
    assert metrics.tally("m", "1").read()["held"] == 7 + 9
    sender.windows([window(2, a=20)])
    assert metrics.tally("m", "1").read()["held"] == 7 + 9, "what leaves is not held back"
