"""The contest is fair: every detector's threshold allows the same false alarms, and delays are counted alike."""

from __future__ import annotations

import numpy as np
import pytest

from tests.statistics.contest import judge, match
from tests.statistics.peers.exchange import EVERY, Scores, by_request, by_window
from tests.statistics.scenarios import HORIZON, WINDOW, Source, streams
from tests.statistics.tables import table
from tests.statistics.versus import by_channels, reluscope


def scores(values: list[list[float]], shipped: float = float("nan")) -> Scores:
    return Scores(np.array(values), np.arange(1, len(values[0]) + 1) * 100, shipped, 1.0)


def test_the_threshold_leaves_one_false_alarm_in_twenty_healthy_streams_even_with_ties() -> None:
    healthy = scores([[float(i), 0.0] for i in range(40)], shipped=30.0)
    entry = match("any", healthy, {"change": scores([[0.0, 38.0], [50.0, 0.0]])}, 10)
    assert entry.false_alarms == 2 / 40
    assert entry.shipped_false_alarms == 10 / 40
    assert (entry.outcomes["change"].found, entry.outcomes["change"].delay) == (1.0, 150.0)
    tied = match("any", scores([[1.0]] * 40), {}, 10)
    assert tied.false_alarms == 0


def test_a_change_that_is_not_found_counts_with_the_whole_stream() -> None:
    outcome = judge(scores([[0.0, 0.0], [0.0, 2.0]]), 1.0)
    assert (outcome.found, outcome.delay) == (0.5, 200.0)


def test_online_detectors_are_looked_at_between_windows() -> None:
    requests = np.arange(60.0).reshape(2, 30, 1)
    values, times = by_request(requests, lambda stream, channel: lambda value: value)
    assert times.tolist() == [EVERY, 2 * EVERY, 3 * EVERY]
    assert values.tolist() == [[9, 19, 29], [39, 49, 59]]


def test_windows_are_scored_in_order() -> None:
    given = streams(Source(), Source(), 2, np.random.default_rng(0))
    values, times = by_window(given, lambda stream, window: float(len(window) + stream))
    assert times.tolist() == list(range(WINDOW, HORIZON + 1, WINDOW))
    assert values.tolist() == [[WINDOW] * len(times), [WINDOW + 1] * len(times)]


@pytest.mark.parametrize("before", [Source(), Source(0.9)], ids=["no zeros", "90% zeros"])
def test_reluscope_tells_a_silent_stream_from_a_healthy_one(before: Source) -> None:
    rng = np.random.default_rng(1)
    healthy = by_channels(streams(before, before, 40, rng))
    silent = by_channels(streams(before, Source(1.0), 10, rng))
    for entry in reluscope(healthy, {"silent": silent}, 1):
        assert entry.outcomes["silent"].found == 1
        assert entry.outcomes["silent"].delay <= 2 * WINDOW


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
