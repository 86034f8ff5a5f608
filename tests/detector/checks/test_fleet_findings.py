"""What on-call is told of an odd agent."""

from __future__ import annotations

import numpy as np
import pytest

from detector.checks.fleet_findings import findings
from detector.domain.finding import WHOLE_LAYER
from detector.statistics.fleet import Agents, Fleet, Scalars, compare
from detector.statistics.fleet.deviation import MEAN, NONFINITE, SHARE
from tests.detector.fakes import probe, rectified, summarise

PROBES = [probe("image", 0, 1, "input"), probe("conv1", 1, 8), probe("fc1", 2, 8)]


def fleet(**changed: dict[str, Scalars]) -> Fleet:
    """Six agents, alike but for the layers given."""
    rng = np.random.default_rng(0)
    reference = {p.name: summarise(rectified(rng, 20_000, p.channels or 1, zeros=0.5 * p.position)) for p in PROBES[:2]}
    reference["fc1"] = reference["conv1"]
    agents: Agents = {
        f"pod{i}": {
            "image": Scalars(500, 500, 1.0, 2.0, 9.0, 0),
            "conv1": Scalars(500, 4000, 0.5, 1.0 + 0.01 * i, 9.0, 0),
            "fc1": Scalars(500, 4000, 0.5, 1.0, 9.0, 0),
        }
        | changed.get(f"pod{i}", {})
        for i in range(6)
    }
    found = compare(agents, PROBES, reference, reference, {})
    assert found is not None
    return found


def listed(of: Fleet, *marked: tuple[str, int, int]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    masks = {name: np.zeros((len(PROBES), 3), np.bool_) for name in of.agents}
    for agent, layer, scalar in marked:
        masks[agent][layer, scalar] = True
    return {name: mask.reshape(-1) for name, mask in masks.items()}


def test_tells_which_pod_at_which_layer_first_how_far_and_that_its_inputs_are_fine() -> None:
    found = fleet(pod2={"conv1": Scalars(500, 4000, 0.5, 2.2, 9.0, 0), "fc1": Scalars(480, 3840, 0.5, 3.0, 9.0, 0)})
    (one,) = findings(found, listed(found, ("pod2", 2, MEAN), ("pod2", 1, MEAN)), 0.001)
    assert (one.layer, one.test, one.cause, one.alert, one.severity, one.origin) == (
        "conv1", "fleet", "hardware_mismatch", "ReluscopeOddPod", "warning", True,
    )  # fmt: skip
    assert one.summary == (
        "agent pod2: mean of conv1 at 2.2, the other 5 agents 1 to 1.05, the reference 1; "
        "0.82 standard deviations from the fleet; its inputs are not odd"
    )
    assert one.effect == pytest.approx((2.2 - 1.035) / np.sqrt(2), rel=0.02)
    assert (one.n, one.n_reference, one.channels) == (500, 2500, tuple(range(8)))
    assert [(e.channel, e.label) for e in one.evidence] == [(WHOLE_LAYER, "odd")]
    assert one.details["agents"] == ["pod2"]
    assert one.details["layers"] == ["conv1", "fc1"]
    assert one.details["others_as_reference"]
    assert one.details["by_agent"][0]["agent"] == "pod2"
    assert [row["odd"] for row in one.details["by_agent"]] == [True, *[False] * 5]


def test_other_inputs_are_the_cause_even_where_only_a_layer_is_listed() -> None:
    found = fleet(pod4={"image": Scalars(500, 500, 1.0, 3.0, 9.0, 0), "conv1": Scalars(500, 4000, 0.5, 2.2, 9.0, 0)})
    (by_input,) = findings(found, listed(found, ("pod4", 0, MEAN), ("pod4", 1, MEAN)), 0.001)
    assert (by_input.layer, by_input.cause) == ("image", "input_shift")
    assert by_input.summary.endswith("its inputs are odd too")
    (by_layer,) = findings(found, listed(found, ("pod4", 1, MEAN)), 0.001)
    assert (by_layer.layer, by_layer.cause, by_layer.alert) == ("conv1", "input_shift", "ReluscopeOddPod")


def test_agents_that_are_odd_alike_share_a_finding() -> None:
    odd = {"conv1": Scalars(500, 4000, 0.5, 2.2, 9.0, 0)}
    worse = {"conv1": Scalars(500, 4000, 0.5, 2.4, 9.0, 0)}
    found = fleet(pod1=odd, pod3=worse, pod5={"fc1": Scalars(500, 4000, 0.2, 1.0, 9.0, 0)})
    first, second = findings(found, listed(found, ("pod1", 1, MEAN), ("pod3", 1, MEAN), ("pod5", 2, SHARE)), 0.001)
    assert first.summary.startswith("2 odd agents, pod3 and pod1; agent pod3: mean of conv1 at 2.4, the other 3 agents")
    assert first.summary.endswith("their inputs are not odd")
    assert [e.text.split(":")[0] for e in first.evidence] == ["agent pod3", "agent pod1"]
    assert (second.layer, second.details["agents"]) == ("fc1", ["pod5"])
    assert "active share of fc1 at 20 %, the other 3 agents 50 %" in second.summary


def test_what_is_not_finite_comes_first() -> None:
    found = fleet(pod0={"conv1": Scalars(500, 3000, 0.5, 2.2, 9.0, 1000)})
    (one,) = findings(found, listed(found, ("pod0", 1, MEAN), ("pod0", 1, NONFINITE)), 0.001)
    assert one.summary == (
        "agent pod0: share of non-finite values of conv1 at 25 %, the other 5 agents 0 %, the reference 0 %; "
        "its inputs are not odd"
    )
    assert one.effect == pytest.approx(0.25, abs=0.05)


def test_what_was_not_tested_in_this_batch_is_not_told_of() -> None:
    found = fleet(pod2={"conv1": Scalars(20, 160, 0.5, 2.2, 9.0, 0), "fc1": Scalars(500, 4000, 0.5, 3.0, 9.0, 0)})
    (one,) = findings(found, listed(found, ("pod2", 1, MEAN), ("pod2", 2, MEAN)), 0.001)
    assert one.layer == "fc1"
    assert findings(found, listed(found, ("pod2", 1, MEAN)), 0.001) == ()


def test_nobody_is_listed_nobody_is_told() -> None:
    found = fleet()
    assert findings(found, listed(found), 0.001) == ()
