"""Sampling by arrival: of the rate asked for whatever the ids are, and nested."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from agent.rates.sampling import Sampler, id_at_head

IDS: dict[str, Callable[[int], str | None]] = {
    "unique": lambda number: f"request-{number}",
    "constant": lambda number: "the one",
    "none": lambda number: None,
    "every id thrice": lambda number: f"request-{number // 3}",
    "ten in turn": lambda number: str(number % 10),
}


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 1.0])
def test_the_share_kept_is_binomial_whatever_the_ids_are(ids: str, rate: float, answered: bool) -> None:
    """Also where every request has been answered before the next, or its response came first."""
    sampler, n = Sampler(rate, draw=Random(f"{ids} {rate}").random), 20_000
    kept = 0
    for number in range(n):
        name = IDS[ids](number)
        if answered and name is not None and number % 2:
            sampler.response("m", name)
        kept += sampler.request("m", name).kept
        if answered and name is not None and not number % 2:
            sampler.response("m", name)
    assert binomtest(kept, n, rate).pvalue > 1e-4
    assert (sampler.seen, sampler.kept) == (n, kept)


@pytest.mark.parametrize("ids", IDS)
def test_arrivals_are_chosen_one_apart_from_the_other(ids: str) -> None:
    """Neither runs nor gaps: what follows a request that was kept is kept as often as what follows another."""
    sampler, n = Sampler(0.3, draw=Random(5).random), 20_000
    kept = np.array([sampler.request("m", IDS[ids](number)).kept for number in range(n)])
    for lag in (1, 3, 10):
        after = kept[lag:][kept[:-lag]]
        assert binomtest(int(after.sum()), len(after), 0.3).pvalue > 1e-4


def test_processes_draw_apart() -> None:
    one, other = Sampler(0.5), Sampler(0.5)
    assert [one.request("m", "a").draw for _ in range(4)] != [other.request("m", "a").draw for _ in range(4)]


@given(st.integers(0, 99), st.floats(0, 1), st.floats(0, 1))
def test_lower_rate_keeps_a_subset(seed: int, one: float, other: float) -> None:
    low, high = (Sampler(rate, draw=Random(seed).random) for rate in sorted((one, other)))
    for _ in range(50):
        assert low.request("m", None).kept <= high.request("m", None).kept


def test_rate_can_be_changed() -> None:
    sampler = Sampler(0.0)
    assert not sampler.request("m", "a").kept
    sampler.rate = 1.0
    assert sampler.request("m", "a").kept


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_rate_is_a_share(rate: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Sampler(rate)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"id":"42","inputs":[]}', "42"),
        (b' {\n "id" : "a\\"b\\u00e9" }', 'a"bé'),
        ('{"id":"é"}'.encode(), "é"),
        (b'{"inputs":[],"id":"42"}', None),
        (b'{"id":42}', None),
        (b'{"id":""}', None),
        (b'{"id":"open', None),
        (b'{"id":"\xff"}', None),
        (b'{"id":"' + b"x" * 2000 + b'"}', None),
        (b"", None),
        (b"\x00\x01", None),
    ],
)
def test_id_at_the_head(body: bytes, expected: str | None) -> None:
    assert id_at_head(body) == expected
