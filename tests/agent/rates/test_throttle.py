"""The governor's hands: the sampler's rate and the two ratios in the metrics follow what replay takes."""

from __future__ import annotations

from random import Random

import pytest

from agent.intake.queue import ByteQueue, Captured
from agent.metrics import AgentMetrics
from agent.rates.governor import Budgets, Governor
from agent.rates.sampling import Sampler
from agent.rates.throttle import Meter, Throttle


class Parts:
    """Everything that a Throttle holds together, and a clock."""

    def __init__(self, rate: float) -> None:
        self.now = 0.0
        self.metrics, self.meter, self.sampler = AgentMetrics(), Meter(), Sampler(rate, draw=Random(1).random)
        self.queue: ByteQueue[Captured] = ByteQueue(1 << 20, 100)
        governor = Governor(rate, Budgets(0.5))
        self.throttle = Throttle(governor, self.sampler, self.queue, self.meter, self.metrics, lambda: self.now)

    def second(self, arriving: int, cost: float) -> None:
        before = self.sampler.kept
        for _ in range(arriving):
            self.sampler.request("m", None)
        self.meter.taken += self.sampler.kept - before
        self.meter.replayed += self.sampler.kept - before
        self.meter.busy_seconds += cost * (self.sampler.kept - before)
        self.now += 1
        self.throttle.step()

    def metric(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(f"reluscope_agent_{name}")
        assert value is not None
        return value


def test_before_any_traffic_both_ratios_are_the_rate_that_was_set() -> None:
    parts = Parts(0.25)
    assert (parts.metric("target_sample_ratio"), parts.metric("effective_sample_ratio")) == (0.25, 0.25)


def test_a_replay_over_budget_lowers_the_rate_and_both_ratios_say_so() -> None:
    parts = Parts(1.0)
    parts.second(100, 0.01)
    assert parts.sampler.rate == pytest.approx(0.45), "100 requests of 10 ms are a second: twice the duty cycle of 0.5"
    assert parts.metric("target_sample_ratio") == parts.sampler.rate
    assert parts.metric("effective_sample_ratio") == 1.0, "all of them were replayed all the same"
    for _ in range(70):
        parts.second(100, 0.01)
    assert parts.metric("effective_sample_ratio") == pytest.approx(parts.sampler.rate, rel=0.1)


def test_requests_that_the_queue_refuses_are_not_in_the_effective_ratio() -> None:
    parts = Parts(1.0)
    for _ in range(100):
        parts.sampler.request("m", None)
    parts.meter.taken, parts.meter.replayed = 40, 30
    parts.now = 1
    parts.throttle.step()
    assert parts.metric("effective_sample_ratio") == 0.3
