"""The sampling rate under load, simulated second by second: it settles, keeps the budgets, does not hunt, recovers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.rates.governor import Budgets, Governor, Reading, effective_ratio


@dataclass(frozen=True)
class Second:
    """What one second of the simulation came to."""

    rate: float
    demand: float
    """Seconds of replay per second that the sample needs, over the duty cycle."""
    refused: float
    fill: float


def simulate(
    arriving: Callable[[int], float],
    cost: Callable[[int], float],
    budgets: Budgets,
    seconds: int,
    rate: float = 0.05,
    room: float = 4096,
) -> list[Second]:
    """A queue that replay drains as fast as its budgets allow, and the governor in charge of what flows in."""
    governor = Governor(rate, budgets)
    seen = kept = refused = taken = busy = waiting = 0.0
    history = []
    for now in range(seconds):
        sampled = arriving(now) * governor.rate
        accepted = min(sampled, room - waiting)
        capacity = budgets.duty_cycle / cost(now)
        if budgets.requests_per_second is not None:
            capacity = min(capacity, budgets.requests_per_second)
        done = min(waiting + accepted, capacity)
        waiting += accepted - done
        seen, kept, taken = seen + arriving(now), kept + sampled, taken + done
        refused, busy = refused + sampled - accepted, busy + done * cost(now)
        governor.step(
            Reading(now + 1.0, int(seen), int(kept), int(refused), int(taken), int(taken), busy, waiting / room)
        )
        demand = arriving(now) * governor.rate * cost(now) / budgets.duty_cycle
        history.append(Second(governor.rate, demand, sampled - accepted, waiting / room))
    return history


def changes_of_direction(history: list[Second]) -> int:
    steps = [second.rate - first.rate for first, second in pairwise(history)]
    signs = [step > 0 for step in steps if abs(step) > 1e-12]
    return sum(first != second for first, second in pairwise(signs))


def test_within_the_budgets_the_rate_stays_as_it_was_set() -> None:
    history = simulate(lambda now: 1000, lambda now: 0.002, Budgets(0.25), 120)
    assert {second.rate for second in history} == {0.05}


def test_a_tenfold_load_settles_within_seconds_keeps_the_duty_cycle_and_recovers() -> None:
    load = lambda now: 10_000 if 30 <= now < 120 else 1000  # noqa: E731
    history = simulate(load, lambda now: 0.002, Budgets(0.25), 200)
    assert all(second.demand <= 1 for second in history[36:120]), "settled after six seconds"
    assert all(second.demand >= 0.75 for second in history[36:120]), "and no lower than need be"
    assert sum(second.refused for second in history) == 0
    assert changes_of_direction(history[30:120]) <= 1
    assert history[119].fill < history[40].fill, "the queue drains"
    assert history[150].rate == 0.05, "thirty seconds after the load has gone, all is as before"


def test_a_replay_that_becomes_fifty_times_slower_as_on_the_cpu() -> None:
    history = simulate(lambda now: 1000, lambda now: 0.05 if 20 <= now < 100 else 0.001, Budgets(0.25), 400)
    assert all(second.demand <= 1 for second in history[35:100])
    assert history[-1].rate == 0.05


def test_requests_per_second_are_kept() -> None:
    history = simulate(lambda now: 1000, lambda now: 0.0001, Budgets(1.0, requests_per_second=10), 60)
    assert all(8 <= 1000 * second.rate <= 10 for second in history[5:])


def test_overflow_of_few_large_requests_lowers_the_rate_too() -> None:
    """Their time is within the budget, but the queue has no room for them."""
    governor = Governor(0.5, Budgets(1.0))
    governor.step(Reading(0, 0, 0, 0, 0, 0, 0, 0))
    assert governor.step(Reading(1, 100, 50, 10, 5, 5, 0.01, 0.4)) == pytest.approx(0.225)


@given(
    st.lists(st.floats(0, 1e5), min_size=1, max_size=60),
    st.lists(st.floats(1e-5, 10), min_size=1, max_size=60),
    st.floats(0.001, 1),
    st.floats(0.001, 1),
)
def test_the_rate_never_exceeds_what_was_set_and_never_ends(
    loads: list[float], costs: list[float], rate: float, duty: float
) -> None:
    history = simulate(
        lambda now: loads[now % len(loads)], lambda now: costs[now % len(costs)], Budgets(duty), 60, rate=rate
    )
    assert all(0 < second.rate <= rate for second in history)


def test_effective_ratio_is_of_what_arrived() -> None:
    first, last = Reading(0, 100, 10, 0, 8, 8, 1, 0), Reading(60, 300, 30, 5, 20, 18, 2, 0)
    assert effective_ratio(first, last) == 0.05
    assert effective_ratio(last, last) is None
