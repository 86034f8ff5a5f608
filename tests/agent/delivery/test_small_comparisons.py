"""Comparisons of too few requests wait, their own counts and each probe by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from agent.delivery.small_comparisons import WHOLE, PassedComparison, SmallComparisons
from agent.delivery.small_groups import MinGroup, WithheldReason
from agent.delivery.versions import Version
from agent.metrics import WITHHELD_REASONS
from agent.paired.sums import compare
from tests.agent.comparisons import PROBES, comparison, probe_comparison

VERSION = ("digits", "2", "ab")
BY_NAME = {probe.name: probe for probe in PROBES}


def alike(n: int) -> wire.Behind:
    """Of requests that each add the same."""
    return wire.Behind(np.full(3, n), np.array([100.0, 101.0, 1.0]) ** 2 / n)


def compared(number: int, n: int, probes: dict[str, int], **changed: Any) -> wire.Comparison:
    """Window ``number`` of a second each."""
    items = tuple(probe_comparison(BY_NAME[name], n=many, behind=alike(many)) for name, many in probes.items())
    span = {"start_ms": number * 1000 + 1000, "end_ms": number * 1000 + 2000}
    return comparison(n=n, top1_n=n, top1_agree=0, probes=items, **{**span, **changed})


def pass_on(small: SmallComparisons, version: Version, body: wire.Comparison) -> PassedComparison:
    """As where delivery succeeds."""
    passed = small.weigh(version, body)
    small.settle(passed)
    return passed


def told(body: wire.Comparison | None) -> tuple[int, int, dict[str, int]] | None:
    return None if body is None else (body.start_ms, body.n, {item.probe.name: item.n for item in body.probes})


def test_counts_and_probes_wait_apart() -> None:
    small = SmallComparisons(MinGroup(20))
    first = pass_on(small, VERSION, compared(0, 25, {"conv1_relu": 25, "conv2_relu": 16}))
    assert told(first.comparison) == (1000, 25, {"conv1_relu": 25})
    assert first.carried == {"conv2_relu": 16}
    second = pass_on(small, VERSION, compared(1, 5, {"conv2_relu": 5}))
    assert told(second.comparison) == (2000, 0, {"conv2_relu": 21}), "a part without counts of its own"
    assert second.carried == {WHOLE: 5}
    third = pass_on(small, VERSION, compared(2, 15, {"conv1_relu": 15}))
    assert told(third.comparison) == (3000, 20, {})
    assert third.comparison is not None
    assert (third.comparison.top1_n, third.comparison.end_ms) == (20, 4000)


def test_sums_add_up_and_the_largest_error_is_told_to_its_bucket() -> None:
    small = SmallComparisons(MinGroup(20))
    assert pass_on(small, VERSION, compared(0, 12, {"conv1_relu": 12})).comparison is None
    body = pass_on(small, VERSION, compared(1, 12, {"conv1_relu": 12})).comparison
    assert body is not None
    [item] = body.probes
    assert (item.signal, item.elements, item.only_served_active.tolist()) == (200.0, 200, [0, 2, 4])
    assert item.max_abs_error == 0.5, "the end of its own bucket"
    exact = probe_comparison(n=30, max_abs_error=0.777, behind=alike(30))
    body = pass_on(small, VERSION, comparison(n=30, probes=(exact,))).comparison
    assert body is not None
    assert 0.777 < body.probes[0].max_abs_error < 0.777 * 1.045


@pytest.mark.parametrize(
    ("served", "baseline"),
    [
        ([0.73], [0.74]),  # of a layer that is zero for all requests but one
        ([0.73, 0.0], [0.0, 0.51]),
        ([0.73, *[1e-9] * 24], [0.74, *[1e-9] * 24]),  # of a classifier that is sure of other classes
        ([0.73, *[0.3, 0.2] * 12], [0.0, *[0.3, 0.2] * 12]),  # of versions that differ at one request
        ([0.73, *[0.3, 0.2] * 12], [-0.73, *[0.3, 0.2] * 12]),
    ],
)
def test_sums_that_one_request_makes_are_told_to_a_bucket(served: list[float], baseline: list[float]) -> None:
    rows = 25
    s, b = (np.array([*side, *[0.0] * (rows - len(side))])[:, np.newaxis] for side in (served, baseline))
    probe = wire.Probe("out", "Relu", "out", 1, 1, "output", 1, True)
    halves = [compare(probe, s[part], b[part], None).sums for part in (slice(0, 10), slice(10, rows))]
    small = SmallComparisons(MinGroup(20))
    assert pass_on(small, VERSION, comparison(n=10, probes=(halves[0],))).comparison is None
    body = pass_on(small, VERSION, comparison(n=15, probes=(halves[1],))).comparison
    assert body is not None
    [item] = body.probes
    exact = wire.merge_probes(*halves)
    for name in ("signal", "power", "noise", "cross"):
        told, true = getattr(item, name), getattr(exact, name)
        assert told != true or true == 0, name
        if name != "cross":
            assert told == pytest.approx(true, rel=2 ** (1 / 16) - 1), name
    apart = exact.power - exact.signal
    assert apart == 0 or item.power - item.signal != pytest.approx(apart, rel=1e-6)
    assert wire.sqnr_db(item) == pytest.approx(wire.sqnr_db(exact), abs=0.4)
    assert wire.cosine(item) == pytest.approx(wire.cosine(exact), abs=0.05)


def test_sums_of_enough_requests_are_exact_and_those_of_unknown_ones_are_not() -> None:
    values = np.random.default_rng(0).normal(size=(25, 8))
    probe = wire.Probe("out", "Relu", "out", 8, 1, "output", 1, True)
    sums = compare(probe, values, values + np.random.default_rng(1).normal(size=values.shape), None).sums
    for item, exact in ((sums, True), (replace(sums, behind=None), False)):
        body = pass_on(SmallComparisons(MinGroup(20)), VERSION, comparison(n=25, probes=(item,))).comparison
        assert body is not None
        assert (body.probes[0].signal == sums.signal) is exact
        assert wire.sqnr_db(body.probes[0]) == pytest.approx(wire.sqnr_db(sums), abs=0.4)


def test_what_was_not_delivered_is_weighed_again() -> None:
    small = SmallComparisons(MinGroup(20))
    pass_on(small, VERSION, compared(0, 15, {"conv1_relu": 15}))
    body = compared(1, 4, {"conv1_relu": 8})
    assert told(small.weigh(VERSION, body).comparison) == told(small.weigh(VERSION, body).comparison)
    assert told(pass_on(small, VERSION, body).comparison) == (2000, 0, {"conv1_relu": 23})
    assert told(pass_on(small, VERSION, compared(2, 1, {})).comparison) == (3000, 20, {})


def test_baselines_and_versions_do_not_mix() -> None:
    small = SmallComparisons(MinGroup(20))
    for version, changes in ((VERSION, {}), (VERSION, {"baseline_digest": "ef"}), (("digits", "3", "ab"), {}),
                             (VERSION, {"kind": "cpu_provider"})):  # fmt: skip
        assert pass_on(small, version, compared(0, 15, {"conv1_relu": 15}, **changes)).comparison is None
    gone = small.withhold("version_gone", lambda version: version == VERSION)
    assert [one.requests for one in gone] == [{WHOLE: 15, "conv1_relu": 15}] * 3
    assert len(small.withhold("stopping", lambda version: True)) == 1


def test_a_probe_that_changes_is_withheld_and_so_is_what_is_stale() -> None:
    small = SmallComparisons(MinGroup(20, carry_seconds=3))
    pass_on(small, VERSION, compared(0, 15, {"conv1_relu": 15}))
    none = np.zeros(5, np.int64)
    wide = probe_comparison(n=7, only_served_active=none, only_baseline_active=none)
    passed = pass_on(
        small, VERSION, comparison(start_ms=2000, end_ms=3000, n=1, top1_n=1, top1_agree=0, probes=(wide,))
    )
    assert [(one.reason, one.requests) for one in passed.withheld] == [("width_changed", {"conv1_relu": 15})]
    passed = pass_on(small, VERSION, compared(4, 15, {"conv2_relu": 3}))
    assert [(one.reason, one.requests) for one in passed.withheld] == [("stale", {WHOLE: 16})]
    assert passed.comparison is None


parts = st.tuples(
    st.integers(0, 6), st.integers(0, 40), st.dictionaries(st.sampled_from(sorted(BY_NAME)), st.integers(4, 40))
)


@given(st.lists(parts, max_size=30), st.integers(1, 50))
def test_every_request_leaves_once_in_company_or_is_counted(
    life: list[tuple[int, int, dict[str, int]]], least: int
) -> None:
    small = SmallComparisons(MinGroup(least, 2))
    came = sum(n + sum(probes.values()) for _, n, probes in life)
    left = 0
    for number, n, probes in life:
        passed = pass_on(small, VERSION, compared(number, n, probes, mismatched=0))
        left += sum(sum(one.requests.values()) for one in passed.withheld)
        if (body := passed.comparison) is not None:
            assert body.start_ms >= (number + 1) * 1000
            assert body.n == 0 or body.n >= least
            assert all(item.n >= least for item in body.probes)
            assert body.n or body.probes
            left += body.n + sum(item.n for item in body.probes)
            wire.decode(wire.encode(wire.Envelope("pod", 1, 1, *VERSION, body)))
    left += sum(sum(one.requests.values()) for one in small.withhold("stopping", lambda version: True))
    assert left == came


def test_a_part_of_no_requests_passes_nothing() -> None:
    passed = pass_on(SmallComparisons(MinGroup(1)), VERSION, compared(0, 0, {}))
    assert (passed.comparison, passed.carried, passed.withheld) == (None, {}, [])


def test_withheld_reasons_are_those_of_the_metric() -> None:
    assert get_args(WithheldReason) == WITHHELD_REASONS
