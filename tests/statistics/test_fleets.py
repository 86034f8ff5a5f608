"""A part of the simulation of fleets that is quick enough for every test run."""

from __future__ import annotations

import numpy as np
import pytest

from tests.statistics.fleets import Outcome, Scene, live


def outcome(scene: Scene, models: int = 10, batches: int = 30) -> Outcome:
    (found,) = live([scene], models, batches, workers=1)
    return found


@pytest.mark.parametrize(
    "scene",
    [
        Scene("equal pods", 3),
        Scene("few requests", 10, requests=30),
        Scene("unequal traffic", 4, requests=50, first=10),
        Scene("sessions of 5", 4, sessions=5),
        Scene("all shifted", 4, moved=1.0),
        Scene("natural spread", 10, spread=0.1),
    ],
    ids=lambda scene: scene.name,
)
def test_healthy_fleets_keep_the_budget(scene: Scene) -> None:
    found = outcome(scene)
    assert found.keeps_budget, f"{found.alarms} alarms"
    assert found.mean_e <= 1


@pytest.mark.parametrize("agents", [3, 4, 10])
def test_an_odd_pod_is_found_within_a_few_batches(agents: int) -> None:
    found = outcome(Scene("odd pod", agents, shift=1.0))
    assert found.delay()[1] <= 14
    assert min(found.found) >= 3  # never by one batch alone


def test_what_is_tolerated_is_never_found() -> None:
    found = outcome(Scene("odd pod", 4, requests=1000, shift=0.08))
    assert np.isinf(found.found).all()
