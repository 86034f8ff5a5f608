"""One agent beside the others: what is tested, against what, and how sure that is."""

from __future__ import annotations

import numpy as np
import pytest

from agent.summary import Summary, from_pooled, merge
from agent.wire import Probe
from detector.statistics.fleet import Agents, Fleet, Scalars, compare, of_summary
from detector.statistics.fleet.deviation import MEAN, NONFINITE, SHARE, spread_factor
from tests.detector.fakes import probe, rectified, summarise

PROBES = [probe("image", 0, 1, "input"), probe("relu", 1, 8)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def layers(rng: np.random.Generator, n: int = 200, shift: float = 0.0, lost: int = 0) -> dict[str, Summary]:
    """One agent's; ``shift`` is added to what the rectifier gives, ``lost`` requests are NaN there."""
    values = rectified(rng, n, 8)
    moved = values + shift
    moved[:lost] = np.nan
    relu = from_pooled(moved, values, (values > 0).astype(np.float64))
    return {"image": summarise(rectified(rng, n, 1, zeros=0)), "relu": relu}


def measured(fleet: dict[str, dict[str, Summary]], rng: np.random.Generator, **options: float) -> Fleet:
    reference = layers(rng, 4000)
    merged: dict[str, Summary] = {}
    for one in fleet.values():
        merged = {name: merge(merged[name], s) if name in merged else s for name, s in one.items()}
    found = compare(scalars(fleet), PROBES, reference, merged, {}, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def scalars(fleet: dict[str, dict[str, Summary]]) -> Agents:
    return {agent: {name: of_summary(s) for name, s in one.items()} for agent, one in fleet.items()}


def test_scalars_are_over_finite_values_alone() -> None:
    values = np.array([[1.0, 0.0], [3.0, np.nan], [np.nan, np.nan], [2.0, 2.0]])
    one = of_summary(from_pooled(values, 2 * values, (values > 0) * 0.5))
    assert one == Scalars(
        4, 5, active_share=0.8, mean=1.6, max=2 ** (42 / 16), nonfinite=3
    )  # the end of the bucket of 6
    assert (one.requests, one.lost) == (2.5, 1.5)
    nothing = of_summary(from_pooled(values[2:3], values[2:3], values[2:3]))
    assert nothing == Scalars(1, 0, 0.0, 0.0, None, 2)


def test_the_odd_agent_alone_is_outside_and_its_distance_is_told(rng: np.random.Generator) -> None:
    unit = float(np.sqrt(layers(rng, 20_000)["relu"].m2 / 20_000).mean())
    fleet = {f"pod-{i}": layers(rng, shift=unit if i == 2 else 0.0) for i in range(5)}
    found = measured(fleet, rng)
    assert found.agents == tuple(fleet)
    assert found.p_values[2, 1, MEAN] < 1e-12
    assert found.distances[2, 1, MEAN] == pytest.approx(1, abs=0.1)
    others = np.delete(found.p_values, 2, axis=0)
    assert others.min() > 0.05
    assert found.p_values[2, 0].min() > 0.05  # its input is like the others'
    assert found.p_values[2, 1, SHARE] > 0.05
    assert found.units[1, MEAN] == pytest.approx(unit, rel=0.05)


def test_a_difference_within_tolerance_is_none_however_many_requests_there_are(rng: np.random.Generator) -> None:
    unit = float(np.sqrt(layers(rng, 20_000)["relu"].m2 / 20_000).mean())
    fleet = {f"pod-{i}": layers(rng, 30_000, shift=0.08 * unit if i == 0 else 0.0) for i in range(4)}
    assert measured(fleet, rng).p_values.min() > 0.5
    assert measured(fleet, rng, tolerance=0.01).p_values[0, 1, MEAN] < 1e-6


def test_two_agents_are_no_fleet_and_few_requests_are_no_test(rng: np.random.Generator) -> None:
    fleet = {f"pod-{i}": layers(rng, 29 if i == 3 else 200, shift=9.0 * (i == 3)) for i in range(4)}
    assert compare(scalars({k: fleet[k] for k in ("pod-0", "pod-1")}), PROBES, {}, {}, {}) is None
    found = measured(fleet, rng)
    assert found.p_values[3].tolist() == np.ones((2, 3)).tolist()
    assert found.tested[3].sum() == 0
    assert found.tested[:3, 1].all()
    assert found.tested[:3, 0].tolist() == [[0, 1, 1]] * 3  # an input that is always active has no share to compare
    few = measured({name: fleet[name] for name in ("pod-0", "pod-1", "pod-3")}, rng)
    assert not few.tested.any()
    assert (few.p_values == 1).all()
    assert measured(fleet, rng, least_requests=29).p_values[3, 1, MEAN] < 1e-6


def test_a_spread_fleet_sets_its_own_tolerance(rng: np.random.Generator) -> None:
    offsets = np.array([-0.5, -0.3, -0.1, 0.0, 0.1, 0.2, 0.35, 0.5])
    spread = {f"pod-{i}": layers(rng, 1000, shift=offset) for i, offset in enumerate(offsets)}
    assert measured(spread, rng).p_values[:, 1].min() > 0.5
    alike = {f"pod-{i}": layers(rng, 1000, shift=0.5 * (i == 7)) for i in range(8)}
    assert measured(alike, rng).p_values[7, 1, MEAN] < 1e-4


def test_requests_that_are_not_finite_are_counted_one_sided(rng: np.random.Generator) -> None:
    fleet = {f"pod-{i}": layers(rng, lost=20 if i == 1 else 0) for i in range(4)}
    found = measured(fleet, rng)
    assert found.p_values[1, 1, NONFINITE] < 1e-3
    assert np.delete(found.p_values[:, 1, NONFINITE], 1).min() == 1
    assert found.values[1, 1, NONFINITE] == pytest.approx(0.1)
    all_lose = measured({f"pod-{i}": layers(rng, lost=20) for i in range(4)}, rng)
    assert all_lose.p_values[:, 1, NONFINITE].min() > 0.05
    single = measured({f"pod-{i}": layers(rng, lost=1 if i == 1 else 0) for i in range(4)}, rng)
    assert single.p_values[1, 1, NONFINITE] > 0.05


def test_an_agent_that_lost_everything_does_not_disturb_the_averages(rng: np.random.Generator) -> None:
    found = measured({f"pod-{i}": layers(rng, lost=200 if i == 0 else 0) for i in range(4)}, rng)
    assert found.p_values[0, 1, NONFINITE] == pytest.approx(0, abs=1e-50)
    assert found.tested[:, 1, MEAN].tolist() == [0, 1, 1, 1]
    assert found.p_values[:, 1, MEAN].min() > 0.05


def test_a_rare_event_is_no_proof(rng: np.random.Generator) -> None:
    """An input that is nearly always positive: a few exceptions are many standard deviations, and prove nothing."""
    share = {"pod-0": 0.98, "pod-1": 1.0, "pod-2": 1.0}
    image = summarise(np.abs(rng.normal(size=(5000, 1))) - 1e-4)
    agents = {a: {"image": Scalars(100, 100, s, 0.8, 3.0, 0)} for a, s in share.items()}
    found = compare(agents, PROBES[:1], {"image": image}, {"image": image}, {})
    assert found is not None
    assert found.p_values[0, 0, SHARE] > 0.05
    seldom = summarise(rectified(rng, 5000, 8, zeros=0.99))
    wild = {f"pod-{i}": {"relu": Scalars(100, 800, 0.01, 0.02 + (i == 0), 3.0, 0)} for i in range(4)}
    found = compare(wild, PROBES[1:], {"relu": seldom}, {"relu": seldom}, {})
    assert found is not None
    assert found.tested[0, 0].tolist() == [1, 0, 1]  # hardly an active request: its mean says nothing


def test_layers_that_lack_a_reference_or_agents_wait(rng: np.random.Generator) -> None:
    fleet = {f"pod-{i}": layers(rng) for i in range(3)}
    late: list[Probe] = [*PROBES, probe("late", 2, 4)]
    reference = layers(rng, 4000)
    current = {**layers(rng, 600), "late": summarise(rectified(rng, 600, 4))}
    found = compare(scalars(fleet), late, reference, current, {})
    assert found is not None
    assert found.p_values.shape == (3, 3, 3)
    assert found.tested[:, 2].sum() == 0
    wider = {"relu": summarise(rectified(rng, 600, 9))}
    found = compare(scalars(fleet), late, reference, wider, {})
    assert found is not None
    assert not found.tested.any()


def test_values_that_overflow_raise_nothing(rng: np.random.Generator) -> None:
    fleet = scalars({f"pod-{i}": layers(rng) for i in range(4)})
    huge = {agent: dict(one) for agent, one in fleet.items()}
    for i, agent in enumerate(huge):
        huge[agent]["relu"] = Scalars(200, 1600, 0.5, 1e300 * (i - 1), 1e300, 0)
    values = np.array([[1e300] * 8, [-1e300] * 8])
    with np.errstate(over="ignore", invalid="ignore"):
        now = {**layers(rng, 800), "relu": from_pooled(values, values, (values > 0) * 1.0)}
    found = compare(huge, PROBES, layers(rng, 4000), now, {})
    assert found is not None
    assert np.isfinite(found.p_values).all()


def test_the_factor_is_larger_in_small_fleets() -> None:
    factors = [spread_factor(agents) for agents in (3, 4, 7, 10, 50, 1000)]
    assert factors == sorted(factors, reverse=True)
    assert (factors[0], factors[-1]) == (22.0, 3.8)
    rng = np.random.default_rng(3)
    for agents in (5, 12, 50):
        x = rng.normal(size=(20_000, agents))
        distance = np.abs(x - np.median(x, axis=1, keepdims=True))
        spread = 1.4826 * np.median(distance, axis=1)
        assert float((distance.max(axis=1) > spread_factor(agents) * spread).mean()) == pytest.approx(0.05, abs=0.012)
