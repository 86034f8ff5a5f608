"""What an alarm budget costs: requests, reference and time until a shift is known, before anything is deployed.

Nothing here is a rule of thumb: delays are drawn from the sampling law of the drift test's own statistic, a noncentral
chi-squared, sent through the same p-values, e-values and e-Shiryaev-Roberts process that `reluscope detector` runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from agent.options import SECTION
from agent.summary.histogram import Floats, Ints
from detector.domain.settings import FALSE_PAGE_DAYS, MIN_EFFECT, FalsePageDays, MinEffect
from detector.statistics.bins import bin_count
from detector.statistics.dead import DORMANT_FALL, clopper_pearson_lower, requests_needed
from detector.statistics.drift import PARTS
from detector.statistics.reference_error import REFERENCE_RISK
from detector.statistics.sequential import calibrate, threshold
from detector.statistics.values import ncx2_tail, tolerance

RUNS, HORIZON = 300, 60
"""Simulated streams, and windows of each; a delay beyond the horizon is taken to be endless."""
SIZES = tuple(int(round(100 * 1.5**i, -1)) for i in range(14))
"""Requests per window that are tried."""
REFERENCES = tuple(int(round(200 * 1.35**i, -2)) for i in range(1, 26))
UNLIMITED = 1e8
"""Requests of a reference that hides nothing."""


@settings(frozen=True, slots=True, config=SECTION)
class Question:
    """What the user states. Raises ValueError, naming what is out of range."""

    requests_per_second: float = Field(gt=0)
    """Requests that will be replayed, after sampling, all agents together."""
    effect: float = Field(default=0.3, gt=0, le=2)
    """Cohen's omega of the smallest shift that must be found, in a single channel."""
    false_page_days: FalsePageDays = FALSE_PAGE_DAYS
    layers: int = Field(default=20, ge=1)
    """Layers observed."""
    channels: int = Field(default=256, ge=1)
    """Channels of the layer with the shift."""
    min_effect: MinEffect = MIN_EFFECT
    reference_requests: int = Field(default=1000, ge=1)
    """Requests in the reference."""
    design_effect: float = Field(default=1.5, ge=1)
    """How much less requests say than independent ones would; 1 if they are."""
    active_rate: float = Field(default=0.2, gt=0, lt=1)
    """Of a channel whose death must be found."""

    def __post_init__(self) -> None:
        if self.min_effect >= self.effect:
            raise ValueError(f"min_effect must be below effect: {self.min_effect:g} is not below {self.effect:g}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What it costs; numbers are inf where the shift would never be found."""

    requests_per_window: int
    """The size of window that finds the shift soonest; `reluscope detector --min-requests`."""
    windows: float
    """Until it is found in nine cases of ten."""
    windows_median: float
    minutes: float
    """At the stated rate, in nine cases of ten."""
    reference_least: float
    """Requests of the smallest reference with which the shift is found at all; less hide it."""
    reference_good: float
    """Requests from which on a larger reference saves less than a third of the time."""
    dead_requests: float
    """Silent requests that prove a channel's death."""
    dead_minutes: float


def plan(question: Question) -> Plan:
    """Answers for a shift of any shape; about a second, the same for the same question.

    A shift that moves all values up or down is found sooner, by its ranks.

    >>> answer = plan(Question(requests_per_second=10, effect=0.5))
    >>> answer.minutes < 10
    True
    """
    size, delays = _soonest(question, question.reference_requests)
    least, good = _references(question)
    dead = dead_requests(question)
    return Plan(
        requests_per_window=size,
        windows=delays[1],
        windows_median=delays[0],
        minutes=delays[1] * size / question.requests_per_second / 60,
        reference_least=least,
        reference_good=good,
        dead_requests=dead,
        dead_minutes=dead / question.requests_per_second / 60,
    )


def delays(question: Question, n: int, reference: float) -> tuple[float, float]:
    """Windows of ``n`` requests until the alarm: the median and the 90 % quantile; inf beyond the horizon."""
    size = np.array([float(n)])
    bins = bin_count(size.astype(np.int64), np.array([int(min(reference, 1e9))]))
    freedom: Ints = bins - 1
    effective, base = n / question.design_effect, np.array([reference / question.design_effect])
    tolerated = float(tolerance(question.min_effect, freedom, base, REFERENCE_RISK, np.array([effective]))[0])
    if tolerated >= question.effect:
        return inf, inf
    rng = np.random.default_rng(0)
    statistic = rng.noncentral_chisquare(float(freedom[0]), effective * question.effect**2, (HORIZON, RUNS))
    p = ncx2_tail(
        statistic, np.broadcast_to(freedom, statistic.shape), np.full(statistic.shape, effective * tolerated**2)
    )
    return _first_alarm(calibrate(p), question, n)


def dead_requests(question: Question) -> float:
    """Silent requests after which one channel's likelihood ratio alone reaches the threshold."""
    n0 = question.reference_requests / question.design_effect
    lower = clopper_pearson_lower(np.array([n0 * question.active_rate]), np.array([n0]))
    # The span of a window matters little to a ratio that grows exponentially: a minute stands for any.
    level = 1 / 1440 / (threshold(question.false_page_days) * question.layers * question.channels)
    return float(requests_needed(lower, level, DORMANT_FALL, question.design_effect)[0])


def sentence(question: Question, answer: Plan) -> str:
    """The answer in one line."""
    if not np.isfinite(answer.minutes):
        return (
            f"a shift of omega {question.effect:g} in one channel would not be found: a reference of "
            f"{question.reference_requests} requests hides it; it needs at least {_count(answer.reference_least)}, "
            f"better {_count(answer.reference_good)}"
        )
    windows = f"{answer.windows:.0f} window{'s' * (answer.windows > 1)}"
    return (
        f"at most one false page in {question.false_page_days:g} days: a shift of omega {question.effect:g} in "
        f"one channel needs {answer.requests_per_window} requests per window and {windows}; at "
        f"{question.requests_per_second:.3g} requests/s that is {answer.minutes:.1f} minutes. A channel "
        f"active in {question.active_rate:.0%} of requests is known to be dead after "
        f"{answer.dead_requests:.0f} silent ones, {answer.dead_minutes:.1f} minutes"
    )


def _count(number: float) -> str:
    return f"{number:.0f}" if np.isfinite(number) else f"more than {REFERENCES[-1]}"


def _soonest(question: Question, reference: float) -> tuple[int, tuple[float, float]]:
    """The size of window with the fewest requests until the alarm, and its delays."""
    found = [(size, delays(question, size, reference)) for size in SIZES]
    return min(found, key=lambda one: (one[1][1] * one[0], one[0]))


def _references(question: Question) -> tuple[float, float]:
    """The smallest of `REFERENCES` with which the shift is found at all, and the smallest that is good."""
    ideal_size, ideal = _soonest(question, UNLIMITED)
    allowed = 1.5 * ideal[1] * ideal_size
    least = good = inf
    for reference in REFERENCES:
        # Near the ideal's size of window there is no need to try all sizes again.
        near = [size for size in SIZES if ideal_size / 2 <= size <= ideal_size * 3]
        requests = min(delays(question, size, reference)[1] * size for size in near)
        if np.isfinite(requests):
            least = min(least, reference)
        if requests <= allowed:
            return least, float(reference)
    return least, good


def _first_alarm(e_values: Floats, question: Question, n: int) -> tuple[float, float]:
    """``e_values`` has shape (windows, runs)."""
    days = n / question.requests_per_second / 86_400
    limit = threshold(question.false_page_days) * question.layers * question.channels * len(PARTS)
    evidence, alarm = np.zeros(e_values.shape[1]), np.full(e_values.shape[1], inf)
    for window, e in enumerate(e_values, start=1):
        evidence = np.minimum((evidence + days) * e, limit)
        alarm = np.where((evidence >= limit) & np.isinf(alarm), window, alarm)
    ordered = np.sort(alarm)
    return float(ordered[len(ordered) // 2]), float(ordered[int(0.9 * len(ordered))])
