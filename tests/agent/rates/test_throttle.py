"""The governor's hands: the sampler's rate and the two ratios in the metrics follow what replay takes."""

from __future__ import annotations

from random import Random

import pytest

from agent.budget.duty import Duty, DutyLimits
from agent.intake.queue import ByteQueue, Captured
from agent.metrics import AgentMetrics
from agent.rates.governor import Budgets, Governors
from agent.rates.samplers import Samplers
from agent.rates.sampling import Sampler
from agent.rates.throttle import Meters, Throttle

DIGITS, OTHER = ("digits", "1"), ("other", "1")


class Parts:
    """Everything that a Throttle holds together, and a clock."""

    def __init__(self, rate: float, kept: float = 0.2) -> None:
        self.now = 0.0
        self.metrics, self.meters = AgentMetrics(), Meters()
        self.samplers = Samplers(rate, lambda rate: Sampler(rate, draw=Random(1).random))
        self.queue: ByteQueue[Captured] = ByteQueue(1 << 20, 100)
        self.duty = Duty(DutyLimits(0.5, kept), lambda: self.now)
        governors = Governors(rate, Budgets(0.5))
        self.throttle = Throttle(
            governors, self.samplers, self.queue, self.meters, self.duty, self.metrics, lambda: self.now
        )

    @property
    def sampler(self) -> Sampler:
        return self.samplers.of(DIGITS)

    def arrive(self, arriving: int, cost: float, key: tuple[str, str] = DIGITS) -> None:
        sampler, meter = self.samplers.of(key), self.meters.of(key)
        before = sampler.kept
        for _ in range(arriving):
            sampler.request("m", None)
        meter.taken += sampler.kept - before
        meter.replayed += sampler.kept - before
        meter.busy_seconds += cost * (sampler.kept - before)

    def tick(self) -> None:
        self.now += 1
        self.throttle.step()

    def second(self, arriving: int, cost: float) -> None:
        self.arrive(arriving, cost)
        self.tick()

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
    meter = parts.meters.of(DIGITS)
    meter.taken, meter.replayed = 40, 30
    parts.now = 1
    parts.throttle.step()
    assert parts.metric("effective_sample_ratio") == 0.3


def test_a_busy_model_thins_out_its_own_sample_and_no_other() -> None:
    parts = Parts(1.0)
    for _ in range(30):
        parts.arrive(500, 0.01)
        parts.arrive(10, 0.01, OTHER)
        parts.tick()
    rates = {key: sampler.rate for key, sampler in parts.samplers.items().items()}
    assert rates[OTHER] == 1.0, "a tenth of a second of replay each second is less than half of the duty cycle"
    assert 0.06 < rates[DIGITS] < 0.09, "0.4 seconds of 5 are left for it"
    labels = {"model": "digits", "version": "1"}
    value = parts.metrics.registry.get_sample_value
    assert value("reluscope_agent_model_sample_ratio", labels) == rates[DIGITS]
    assert parts.metric("target_sample_ratio") == pytest.approx((500 * rates[DIGITS] + 10) / 510)


def test_replay_plans_with_what_other_work_leaves_but_not_less_than_its_own_part() -> None:
    for share, expected in ((0.05, 0.45), (0.4, 0.4)):
        parts = Parts(1.0)
        for _ in range(40):
            parts.arrive(1000, 0.001)
            parts.duty.charge("calibration", OTHER, share)
            parts.tick()
        assert 0.8 * expected < parts.sampler.rate <= expected


def test_a_version_that_has_gone_has_no_rate_any_more() -> None:
    """A gauge that nobody sets again would say for ever what once was; and new versions come every day."""
    parts = Parts(0.25)
    parts.arrive(10, 0.001)
    parts.arrive(10, 0.001, OTHER)
    parts.tick()
    parts.samplers.keep([OTHER])
    parts.tick()
    told = {
        sample.labels["model"]
        for family in parts.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "reluscope_agent_model_sample_ratio"
    }
    assert told == {"other"}
    parts.arrive(10, 0.001)
    parts.tick()
    parts.samplers.keep([])
    parts.tick()
