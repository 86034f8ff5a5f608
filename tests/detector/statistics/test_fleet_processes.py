"""AlarmEvidence against agents that come and go keeps the budget."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from agent.summary import Summary, merge
from detector.statistics.design_effect import DesignEffect, unknown
from detector.statistics.fleet import Fleet, compare, e_values, fitted, of_summary
from detector.statistics.fleet.deviation import MEAN
from detector.statistics.fleet.processes import LARGEST_E
from detector.statistics.sequential import AlarmEvidence, advance, threshold, without
from tests.detector.fakes import probe, summarise

PROBES = (probe("image", 0, 1, "input"), probe("relu", 1, 8))
WIDTH = 6


def fleet(p_values: dict[str, float]) -> Fleet:
    """Every process of an agent has the same p-value."""
    shape = (len(p_values), 2, 3)
    p = np.array(list(p_values.values()))[:, None, None] * np.ones(shape)
    zeros = np.zeros((2, 3))
    return Fleet(
        tuple(p_values),
        PROBES,
        np.full(shape[:2], 100),
        np.zeros(shape),
        p,
        np.ones(shape, np.bool_),
        zeros,
        zeros,
        zeros,
    )


def test_heavy_tails_of_small_pods_beside_a_large_one_are_no_evidence_on_average() -> None:
    """The mean of 30 log-normal values is far from normal, and the median of such means far below their expectation."""
    rng, seen = np.random.default_rng(0), []

    def drawn(n: int) -> Summary:
        return summarise(np.exp(2 * rng.normal(size=(n, 1))) * np.ones((1, 3)))

    relu = probe("relu", 1, 3)
    reference = drawn(20_000)
    for _ in range(400):
        agents = {f"pod-{i}": drawn(n) for i, n in enumerate((30, 30, 30, 3000))}
        scalars = {name: {"relu": of_summary(one)} for name, one in agents.items()}
        now = {"relu": reduce(merge, agents.values())}
        found = compare(scalars, [relu], {"relu": reference}, now, {"relu": unknown(3)})
        seen.append(list(e_values(AlarmEvidence(), found).values()))
    mean = np.mean(seen, axis=(0, 1))
    assert (mean <= 1).all(), mean
    assert np.max(seen) > 5  # it was put to the test


def test_no_single_batch_raises_an_alarm_and_few_do() -> None:
    evidence, limit, batches = AlarmEvidence(), threshold(90), 0
    while not evidence.alarm:
        found = fleet({"a": 0.0, "b": 1.0, "c": 1.0})
        e = e_values(evidence, found)
        assert e["a"].max() == LARGEST_E
        evidence = advance(evidence, e, 1 / 1440, limit)
        batches += 1
    assert batches == 5


def test_exceptions_that_move_a_whole_layer_of_a_pod_with_few_requests_are_no_evidence() -> None:
    """One request in five hundred is far from the others in all channels, and lands now on this pod, now on that."""
    rng, agents, requests, seen = np.random.default_rng(5), 30, 30, []
    given = probe("image", 0, 3, "input")

    def drawn(n: int) -> Summary:
        on = rng.random((n, 1)) < 0.002
        return summarise(np.where(on, 4.5, 0.1) + 0.001 * rng.random((n, 3)))

    references = [drawn(3000) for _ in range(8)]
    for batch in range(240):
        parts = {f"pod-{i}": drawn(requests) for i in range(agents)}
        scalars = {name: {"image": of_summary(one)} for name, one in parts.items()}
        found = compare(
            scalars,
            [given],
            {"image": references[batch % len(references)]},
            {"image": reduce(merge, parts.values())},
            {"image": DesignEffect(np.full(3, 1.2), 1.0, 10, 900.0)},
        )
        seen.append([e[MEAN] for e in e_values(AlarmEvidence(), found).values()])
    assert np.mean(seen) <= 1
    assert np.max(seen) == LARGEST_E  # it was put to the test


def test_an_agent_that_a_batch_lacks_loses_half_its_evidence() -> None:
    before = AlarmEvidence({"a": np.full(WIDTH, 8.0), "b": np.full(WIDTH, 1.0)}, days=1.0)
    e = e_values(before, fleet({"b": 1.0, "c": 1.0, "d": 1.0}))
    assert set(e) == {"a", "b", "c", "d"}
    assert e["a"].tolist() == [0.5] * WIDTH
    after = advance(before, e, 1e-9, 1e9)
    assert after.layers["a"] == pytest.approx(4.0)
    assert advance(before, e_values(before, None), 1e-9, 1e9).layers["a"] == pytest.approx(4.0)


def test_other_probes_begin_anew() -> None:
    before = AlarmEvidence({"a": np.full(9, 8.0), "b": np.full(WIDTH, 1.0)}, days=1.0)
    after = fitted(before, fleet({"a": 1.0, "b": 1.0, "c": 1.0}))
    assert {name: r.tolist() for name, r in after.layers.items()} == {"a": [0.0] * WIDTH, "b": [1.0] * WIDTH}
    assert after.level <= before.level
    assert fitted(before, None) is before


def test_dropping_agents_never_raises_the_level() -> None:
    before = AlarmEvidence({"odd": np.full(WIDTH, 9.0), "b": np.zeros(WIDTH), "c": np.zeros(WIDTH)}, days=2.0)
    after = without(before, {"b", "c"})
    assert (set(after.layers), after.days) == ({"odd"}, 2.0)
    assert after.level == pytest.approx(3.0)
    assert without(before, {"odd"}).level == 0
    assert without(before, set(before.layers)).layers == {}
    assert without(AlarmEvidence(), {"x"}) == AlarmEvidence()


@pytest.mark.parametrize("life", [3, 50])
def test_the_budget_is_kept_while_agents_are_replaced(life: int) -> None:
    """E-values of mean 1 exactly; every agent is replaced by a new name after ``life`` batches, one at a time."""
    rng, limit, runs, horizon = np.random.default_rng(life), 100.0, 600, 60
    alarms = 0
    for _ in range(runs):
        evidence = AlarmEvidence()
        names = [f"0-{i}" for i in range(3)]
        for batch in range(1, horizon + 1):
            if batch % life == 0:
                gone, names = names[0], [*names[1:], f"{batch}-new"]
                evidence = without(evidence, {gone})
            e = {name: 0.5 / np.sqrt(rng.random(2)) for name in names}
            evidence = advance(evidence, e, 1.0, limit)
            if evidence.alarm:
                alarms += 1
                break
    assert alarms / runs <= horizon / limit
    assert alarms  # the bound is not kept by never alarming
