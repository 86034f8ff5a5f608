"""The number of silent requests that a finding states is the number after which the alarm comes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agent.summary import Summary
from detector.checks.examine import accumulate, judge, measure
from detector.domain.settings import CheckSettings
from detector.planning.plan import Question, dead_requests
from detector.statistics.dead import DORMANT_FALL, dead, requests_needed
from detector.statistics.sequential import FAMILIES, AlarmEvidence
from tests.detector.fakes import probe, summarise

BATCH, DAYS, RATE = 10, 60 / 86_400, 0.2
SETTINGS = CheckSettings()


def layer(rng: np.random.Generator, n: int, channels: int, active: int, silent: bool = False) -> Summary:
    """The first ``active`` channels in a fifth of the requests, the others never; ``silent`` ends the first."""
    values = np.zeros((n, channels))
    values[:, :active] = (rng.random((n, active)) < RATE) * rng.gamma(2, size=(n, active))
    values[:, :1] *= not silent
    return summarise(values)


@pytest.mark.parametrize(("channels", "active", "others"), [(128, 4, 0), (8, 8, 0), (8, 8, 5)])
def test_the_alarm_comes_at_the_stated_number(channels: int, active: int, others: int) -> None:
    rng = np.random.default_rng(0)
    sizes = {"relu": (channels, active), **{f"other{i}": (16, 16) for i in range(others)}}
    probes = [probe(name, position, size[0]) for position, (name, size) in enumerate(sizes.items(), start=1)]
    reference = {name: layer(rng, 5000, *size) for name, size in sizes.items()}
    evidence = {family: AlarmEvidence() for family in FAMILIES}
    silent, stated = 0, math.inf
    while not evidence["dead"].alarm and silent < 500:
        current = {name: layer(rng, BATCH, *size, name == "relu") for name, size in sizes.items()}
        measured = measure(probes, reference, current, SETTINGS, None, BATCH)
        evidence = accumulate(evidence, measured, DAYS, SETTINGS)
        silent += BATCH
        results, _ = judge(measured, evidence, DAYS, SETTINGS)
        assert results[0].dead is not None
        stated = float(results[0].dead.needed[0])
    rounded_up = math.ceil(stated / BATCH) * BATCH
    # Time that passes while the evidence gathers adds a little to it: at most a batch.
    assert rounded_up - BATCH <= silent <= rounded_up


def test_correlated_requests_prove_less() -> None:
    rng = np.random.default_rng(1)
    now, before = layer(rng, 100, 2, 2), layer(rng, 5000, 2, 2)
    result = dead(before, now, design_effect=np.array([1.0, 3.0]))
    assert result.design_effect.tolist() == [1, 3]
    needed = requests_needed(np.full(2, RATE), 1e-7, DORMANT_FALL, result.design_effect)
    assert needed[1] == pytest.approx(3 * needed[0], abs=3)


def test_a_plan_states_the_number_of_the_check() -> None:
    rng = np.random.default_rng(2)
    question = Question(requests_per_second=1, layers=1, channels=8, reference_requests=5000, active_rate=RATE)
    probes, summary = [probe("relu", 1, 8)], {"relu": layer(rng, 5000, 8, 8)}
    measured = measure(probes, summary, summary, SETTINGS, None, BATCH)
    evidence = accumulate({}, measured, 1 / 1440, SETTINGS)
    results, _ = judge(measured, evidence, 1 / 1440, SETTINGS)
    assert results[0].dead is not None
    effect = float(results[0].dead.rates.design_effect[0])
    planned = dead_requests(question) * effect / question.design_effect
    assert results[0].dead.needed[0] == pytest.approx(planned, rel=0.1)
