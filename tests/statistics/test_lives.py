"""Short lives on which nothing happens, through the product's own path: no alarm, and hardly any evidence.

Half a minute of what `make statistics ARGS='--parts lives'` does for thousands of model-days.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from agent.summary import from_pooled
from agent.summary.histogram import downscale
from detector.checks.check import prepare
from detector.statistics.sequential import FAMILIES, threshold
from tests.statistics import populations
from tests.statistics.lives import HOUR, SETTINGS, Model, Null, live, nulls, real
from tests.statistics.populations import LAWS
from tests.statistics.traffic import Capture, Traffic

QUIET = 0.01
"""Of the threshold: while the budget is kept with room to spare, two lives of a few days stay far below it."""


@pytest.mark.parametrize("null", [*nulls(), *real()[:2]], ids=lambda null: null.name)
def test_a_life_on_which_nothing_happens_raises_nothing(null: Null) -> None:
    (found,) = live([null], models=2, batches=60, workers=1, seed=1)
    assert found.found == 0, found.alarms
    assert found.largest < QUIET


@pytest.mark.parametrize(("block", "reference_hours"), [(50, 0), (300, 100)])
def test_customers_who_come_in_blocks_hardly_ever_page(block: int, reference_hours: int) -> None:
    """A customer's requests activate a channel all or none, so its zeros hang together far more than its values do.

    With an effect averaged over zeros and values these lives had a dozen alarms each, where fewer than one is allowed.
    """
    null = Null("blocks", populations.customers, Traffic(block=block), reference_hours)
    (found,) = live([null], models=16, batches=100, workers=1, seed=2)
    assert found.keeps_budget, found.alarms


def test_every_life_has_laws_of_its_own() -> None:
    first, second = (populations.anything(np.random.default_rng(seed)) for seed in (0, 1))
    assert not np.allclose(first.layers["conv"].fraction.mean(axis=0), second.layers["conv"].fraction.mean(axis=0))


def test_a_window_is_what_the_agent_would_send() -> None:
    population = populations.anything(np.random.default_rng(2))
    requests = next(Traffic(session=3).windows(population, np.random.default_rng(3)))
    drawn = Capture(population).summaries(requests)
    for name, pooled in population.layers.items():
        sent = from_pooled(pooled.mean[requests], pooled.maximum[requests], pooled.fraction[requests])
        for which in ("mean_histogram", "max_histogram"):
            mine, theirs = getattr(drawn[name], which), getattr(sent, which)
            assert mine.same_as(downscale(theirs, mine.scale))
        for what in ("n", "active", "nonfinite", "fraction_sum", "fraction_sq_sum", "mean", "m2"):
            assert np.allclose(getattr(drawn[name], what), getattr(sent, what)), what


def test_the_evidence_is_that_of_the_detectors_checks() -> None:
    """A check on stored windows, after each of a few batches, against the simulation's own steps."""
    model = Model(Null("any", populations.anything), np.random.default_rng(4))
    store, limit = model.store, threshold(SETTINGS.false_page_days)
    for batch, evidence in model.evidence(5, keep=True):
        now = batch.end + HOUR
        check, advance = prepare(store, model.version, replace(SETTINGS, lookback_seconds=1e6), now)
        assert advance is not None
        store.save_check(check, {}, advance)
        for family in FAMILIES:
            assert check.alarms[family]["evidence"] == pytest.approx(evidence[family].level / limit, rel=1e-9), family


def test_a_change_is_found_in_such_a_life() -> None:
    """They are not silent because nothing could be found: a quarter of the requests switched off is."""
    model = Model(Null("off", partial(populations.plain, LAWS["betas"])), np.random.default_rng(5))
    for pooled in model.population.layers.values():
        for values in (pooled.mean, pooled.maximum, pooled.fraction):
            values[: len(values) // 4] = 0.0
    model.look_again()
    assert any(one["drift"].alarm for _, one in model.evidence(20))


def test_days_and_sessions_are_what_they_are_called() -> None:
    population = populations.two_kinds(np.random.default_rng(6))
    stream = Traffic(requests=300, daily=0.3).windows(population, np.random.default_rng(7))
    day = [next(stream) for _ in range(24)]
    noon, night = day[6], day[18]
    assert len(noon) > 1.5 * len(night)
    assert population.classes[noon].mean() > population.classes[night].mean() + 0.1
    sessions = next(Traffic(requests=400, session=4).windows(population, np.random.default_rng(8)))
    assert (sessions[1:] == sessions[:-1]).mean() > 0.2
