"""Summaries lose nothing that a verdict needs."""

from __future__ import annotations

import pytest

from tests.statistics.exactness import Agreement, agreements, merging


def test_shards_merged_in_any_order_are_a_single_pass_bit_for_bit_and_so_are_their_verdicts() -> None:
    found = merging(orders=10, requests=1000, channels=10)
    assert found.identical
    assert found.moments < 1e-9


@pytest.fixture(scope="module")
def found() -> dict[str, Agreement]:
    return {one.change: one for one in agreements(channels=150)}


def test_verdicts_on_histograms_are_those_on_raw_values(found: dict[str, Agreement]) -> None:
    for one in found.values():
        assert one.same >= 0.9, one
        assert abs(one.found - one.found_exact) <= 0.06, one
    assert found["nothing"].same >= 0.99
    assert found["silent"].found == 1


def test_the_death_p_value_is_scipys(found: dict[str, Agreement]) -> None:
    assert max(one.death for one in found.values()) < 1e-12


def test_the_distance_is_right_to_half_a_bucket(found: dict[str, Agreement]) -> None:
    assert max(one.distance for one in found.values()) < 0.1
