"""The plan against the tests that it speaks of, and what it says to people."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from detector.planning.command import command
from detector.planning.plan import Question, delays, plan, sentence
from detector.statistics.drift import PARTS, drift
from detector.statistics.reference_error import REFERENCE_RISK
from detector.statistics.sequential import calibrate, threshold
from tests.detector.fakes import summarise

ASKED = Question(requests_per_second=10, effect=0.4, reference_requests=5000, design_effect=1.0)


def test_the_delay_is_that_of_the_drift_test_itself() -> None:
    """A shift of known omega, played through the real test and process, is found when the plan says."""
    n, planned = 600, delays(ASKED, 600, 5000)
    rng = np.random.default_rng(0)
    old = rng.random((5000, 400)) + 1
    shares = 1 + 0.4 * np.repeat([1.0, -1.0], 4)  # omega is .4, however fine the bins are
    cell = rng.choice(8, size=(12 * n, 400), p=shares / 8)
    new = 1 + (cell + rng.random(cell.shape)) / 8
    reference, days = summarise(old), n / 10 / 86_400
    limit = threshold(ASKED.false_page_days) * ASKED.layers * ASKED.channels * len(PARTS)
    evidence, alarm = np.zeros(400), np.full(400, np.inf)
    for window in range(12):
        result = drift(reference, summarise(new[window * n : (window + 1) * n]), reference_risk=REFERENCE_RISK)
        evidence = np.minimum((evidence + days) * calibrate(result.p_parts[:, PARTS.index("values")]), limit)
        alarm = np.where((evidence >= limit) & np.isinf(alarm), window + 1, alarm)
    assert abs(np.median(alarm) - planned[0]) <= 2
    assert abs(np.quantile(alarm, 0.9) - planned[1]) <= 3


def test_more_of_anything_never_costs_more_time() -> None:
    base = plan(ASKED)
    assert plan(replace(ASKED, effect=0.6)).minutes < base.minutes
    assert plan(replace(ASKED, reference_requests=50_000)).minutes <= base.minutes
    assert plan(replace(ASKED, design_effect=3.0)).minutes > base.minutes
    assert plan(replace(ASKED, requests_per_second=20)).minutes < base.minutes
    assert plan(replace(ASKED, false_page_days=9000)).minutes >= base.minutes
    assert base.reference_least <= base.reference_good


def test_death_needs_about_the_published_number_of_requests() -> None:
    # ln(1 / level) / -ln(1 - p) with level a minute of the budget, and p the lower bound of .2.
    level = 1 / 1440 / (threshold(90) * 20 * 256)
    assert plan(ASKED).dead_requests == pytest.approx(np.log(level) / np.log(1 - 0.18), rel=0.15)


def test_a_reference_that_hides_the_shift_is_said_to() -> None:
    asked = replace(ASKED, effect=0.2, reference_requests=300)
    answer = plan(asked)
    assert not np.isfinite(answer.minutes)
    assert "hides it; it needs at least" in sentence(asked, answer)


@pytest.mark.parametrize(
    "wrong", [{"effect": 0.05}, {"requests_per_second": 0.0}, {"design_effect": 0.5}, {"active_rate": 1.0}]
)
def test_what_is_out_of_range_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(ASKED, **wrong)  # type: ignore[arg-type]


def test_the_command_answers_in_words_and_in_json() -> None:
    arguments = ["--requests-per-second", "10", "--effect", "0.4", "--within", "5"]
    said = CliRunner().invoke(command, arguments)
    assert said.exit_code == 0, said.output
    assert "requests per window and" in said.output
    assert "to know within 5 minutes takes" in said.output
    told = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).output)
    assert told["asked"]["effect"] == 0.4
    assert told["minutes"] > 0
    assert told["within_requests_per_second"] == pytest.approx(
        told["requests_per_window"] * told["windows"] / 300, rel=1e-6
    )
    refused = CliRunner().invoke(command, ["--requests-per-second", "10", "--effect", "0.01"])
    assert refused.exit_code == 2
    assert "min_effect must be below effect" in refused.output
    hidden = ["--requests-per-second", "1", "--effect", "0.2", "--reference-requests", "300"]
    assert json.loads(CliRunner().invoke(command, [*hidden, "--json"]).output)["minutes"] is None
