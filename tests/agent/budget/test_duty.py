"""One duty cycle for all work: simulated with a clock of its own."""

from __future__ import annotations

import heapq
import math

import pytest

from agent.budget.duty import Duty, DutyLimits, Work
from agent.metrics import AgentMetrics

KEY = ("digits", "1")
SECONDS = 600.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(limits: DutyLimits, runs: dict[Work, float], seconds: float = SECONDS) -> tuple[Duty, float]:
    """Each kind of work in a thread of its own that always wants more, in runs of so many seconds.

    Returns the ledger, and the longest run.
    """
    clock = Clock()
    duty = Duty(limits, clock)
    agenda: list[tuple[float, Work, bool]] = [(0.0, work, False) for work in runs]
    while agenda:
        clock.now, work, running = heapq.heappop(agenda)
        if clock.now > seconds:
            break
        if running:
            duty.charge(work, KEY, runs[work])
        wait = duty.delay(work)
        if wait > 0:
            heapq.heappush(agenda, (clock.now + wait, work, False))
        else:
            heapq.heappush(agenda, (clock.now + runs[work], work, True))
    return duty, max(runs.values())


@pytest.mark.parametrize(
    "runs",
    [
        {"replay": 0.1},
        {"replay": 0.1, "paired": 0.4, "holdout": 0.3, "calibration": 0.2},
        {"replay": 8.0, "paired": 0.01, "calibration": 0.5},
        {"replay": 0.01, "paired": 6.0, "holdout": 6.0},
        {"holdout": 0.3, "calibration": 0.3},
    ],
)
def test_all_work_together_keeps_the_duty_cycle_and_uses_it(runs: dict[Work, float]) -> None:
    duty, longest = simulate(DutyLimits(0.25, 0.2, 0.05), runs)
    used = sum(duty.used(work) for work in runs)
    assert used <= 0.25 * SECONDS + 0.25 + len(runs) * longest
    assert used >= 0.25 * SECONDS * 0.94 - longest


def test_replay_comes_first_and_leaves_the_others_what_is_kept_for_them() -> None:
    duty, _ = simulate(DutyLimits(0.25, 0.2, 1.0), {"replay": 0.1, "holdout": 0.1, "calibration": 0.1})
    others = duty.used("holdout") + duty.used("calibration")
    assert others == pytest.approx(0.25 * 0.2 * SECONDS, rel=0.05)
    assert duty.used("replay") == pytest.approx(0.25 * 0.8 * SECONDS, rel=0.05)
    assert min(duty.used("holdout"), duty.used("calibration")) > 0.3 * others, "neither starves the other"


def test_what_replay_leaves_the_others_may_use() -> None:
    duty, _ = simulate(DutyLimits(0.25, 0.2, 1.0), {"calibration": 0.1})
    assert duty.used("calibration") == pytest.approx(0.25 * SECONDS, rel=0.05)


def test_comparing_keeps_its_own_duty_cycle_as_well() -> None:
    duty, _ = simulate(DutyLimits(0.25, 0.2, 0.01), {"paired": 0.1})
    assert duty.used("paired") == pytest.approx(0.01 * SECONDS, rel=0.1)


def test_after_a_night_of_idling_no_more_than_a_second_is_saved_up() -> None:
    clock = Clock()
    duty = Duty(DutyLimits(0.25), clock)
    clock.now = 8 * 3600
    assert duty.delay("replay") == 0
    clock.now += 1
    duty.charge("replay", KEY, 1.0)
    assert duty.delay("replay") == pytest.approx(2.0), "of three seconds' rest one was saved up"


def test_work_and_waiting_are_counted_by_kind_and_version() -> None:
    clock, metrics = Clock(), AgentMetrics()
    waited: list[Work] = []
    duty = Duty(
        DutyLimits(0.25),
        clock,
        lambda work, key, seconds: metrics.work_seconds_total.labels(work, *key).inc(seconds),
        waited.append,
    )
    clock.now = 2
    duty.charge("holdout", KEY, 2.0)
    assert duty.recent() == 1.0
    assert [duty.delay("replay") > 0 for _ in range(3)] == [True] * 3
    assert waited == ["replay"], "once for each wait, however often it is asked"
    clock.now += 8
    assert duty.recent() == pytest.approx(0.2)
    assert duty.delay("replay") == 0
    labels = {"work": "holdout", "model": "digits", "version": "1"}
    assert metrics.registry.get_sample_value("reluscope_agent_work_seconds_total", labels) == 2.0
    clock.now += 60
    assert duty.recent() == 0.0 and math.isfinite(duty.recent())
