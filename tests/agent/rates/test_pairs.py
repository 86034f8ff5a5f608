"""A response is in the sample exactly where its request is, and no response is taken for another request's."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.rates.pairs import Arrival, Pairs
from agent.rates.sampling import Sampler


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Line:
    """A sampler that knows already that responses of the model "m" come."""

    def __init__(self, rate: float = 1.0, most: int = 1000, seed: int = 0) -> None:
        self.clock = Clock()
        self.forgotten: list[None] = []
        self.pairs = Pairs(30, most, lambda: self.forgotten.append(None), self.clock)
        self.sampler = Sampler(rate, self.pairs, Random(seed).random)
        assert self.sampler.response("m", "the first of all") is None
        self.clock.now += 30

    def request(self, name: str) -> Arrival:
        return self.sampler.request("m", name)

    def response(self, name: str) -> Arrival | None:
        return self.sampler.response("m", name)


@pytest.mark.parametrize("response_first", [False, True])
def test_a_response_is_chosen_where_its_request_is(response_first: bool) -> None:
    line = Line(rate=0.3)
    kept = 0
    for number in range(1000):
        name = f"request {number}"
        response = line.response(name) if response_first else None
        request = line.request(name)
        if not response_first:
            response = line.response(name)
        assert (response is not None) == request.kept
        if response is not None:
            assert response == request
            assert response.pair is not None
        kept += request.kept
    assert 230 < kept < 370
    assert line.pairs.depth() == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 20)), max_size=60), st.integers(0, 9))
def test_no_two_requests_share_a_pair_whatever_the_order(events: list[tuple[bool, int, int]], seed: int) -> None:
    """Ids repeat, halves are lost, time passes: a pair is one request and one response, alike, or less."""
    line = Line(rate=0.7, seed=seed, most=3)
    halves: dict[tuple[str, int], Arrival] = {}
    for is_request, number, wait in events:
        line.clock.now += wait
        half = "request" if is_request else "response"
        arrival = line.request(str(number)) if is_request else line.response(str(number))
        if arrival is not None and arrival.pair is not None:
            assert (half, arrival.pair) not in halves
            halves[half, arrival.pair] = arrival
    for (half, pair), arrival in halves.items():
        other = halves.get(("response" if half == "request" else "request", pair))
        assert other is None or other == arrival


def test_what_is_open_twice_is_paired_with_nothing() -> None:
    line = Line()
    first, second = line.request("constant"), line.request("constant")
    assert (first.pair is not None, second.pair) == (True, None)
    assert line.response("constant") is None, "whose is it?"
    assert line.response("constant") is None
    assert line.request("constant").pair is None
    line.clock.now += 31
    assert line.request("constant").pair is not None, "all that were under way have come or gone"


def test_two_responses_of_one_id_are_paired_with_nothing() -> None:
    line = Line()
    assert line.response("a") is not None
    assert line.response("a") is None
    assert line.request("a").pair is None


def test_a_retry_after_an_answer_is_a_pair_of_its_own() -> None:
    line = Line()
    pairs = []
    for _ in range(3):
        request = line.request("a")
        assert line.response("a") == request
        pairs.append(request.pair)
    assert len(set(pairs)) == 3


def test_models_are_kept_apart() -> None:
    line = Line()
    line.sampler.response("other", "x")
    line.clock.now += 30
    mine, other = line.request("a"), line.sampler.request("other", "a")
    assert len({mine.pair, other.pair, None}) == 3
    assert line.response("a") == mine


def test_nothing_is_noted_where_no_responses_come() -> None:
    clock = Clock()
    pairs = Pairs(30, 10, clock=clock)
    sampler = Sampler(1.0, pairs)
    assert sampler.request("m", "a").pair is None
    assert sampler.response("m", "a") is None, "the first: its request was not noted"
    assert sampler.request("m", "b").pair is not None
    assert sampler.response("m", "c") is None, "nor may its be"
    assert sampler.response("m", "b") is not None
    clock.now += 600
    assert sampler.request("m", "d").pair is None, "they stopped coming"
    assert pairs.depth() == 0


def test_what_waits_too_long_is_forgotten() -> None:
    line = Line()
    first = line.request("a")
    line.clock.now += 31
    late = line.response("a")
    assert late is not None
    assert late.pair != first.pair
    for number in range(100):
        line.request(str(number))
    line.clock.now += 31
    line.request("x")
    line.request("y")
    assert line.pairs.depth() == 2


def test_ids_are_bounded_and_a_response_whose_request_was_forgotten_is_nobodys() -> None:
    line = Line(most=3)
    for name in "abcd":
        line.request(name)
    assert line.pairs.depth() == 3
    assert len(line.forgotten) == 1
    assert line.response("a") is None
    assert line.response("d") is not None
    line.clock.now += 31
    assert line.response("e") is not None, "what was forgotten would be too old by now"
