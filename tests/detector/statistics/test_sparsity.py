"""The band of a layer's sparsity: its width, its level under the null, and what it sees that no channel shows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import reduce

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from agent.summary import Summary, empty, from_pooled, merge
from detector.checks.examine import Measured, accumulate, judge, measure
from detector.checks.policy import conclude
from detector.checks.words import sparsity_sentence
from detector.domain.finding import Finding
from detector.domain.layered import layered
from detector.domain.settings import CheckSettings
from detector.statistics.design_effect import DesignEffect, Scatter, unknown
from detector.statistics.sequential import AlarmEvidence
from detector.statistics.sparsity import REFERENCE_RISK, Estimator, Sparsity, share_of_zeros, sparsity, variance
from tests.detector.fakes import probe, rectified, summarise
from tests.statistics.sparsity import TOWARDS_HALF, Traffic, known, quiet

PROBES = [probe("image", 0, 1, "input"), probe("stem", 1, 8), probe("conv1", 2, 128)]
DAYS = 5 / 1440


def shares(active: Sequence[int], n: int) -> Summary:
    """A summary of requests that are active or not, as in dense layers."""
    values = np.array(active, np.float64)
    return replace(empty(len(values)), n=n, fraction_sum=values, fraction_sq_sum=values)


def effect(scatter: Scatter | None, requests_per_window: float = 1000.0, channels: int = 2) -> DesignEffect:
    return DesignEffect(np.ones(channels), 1.0, 10, requests_per_window, scatter)


def judged(now: Summary, scatter: Scatter | None = None, requests_per_window: float = 1000.0) -> Sparsity:
    found = sparsity(shares([5000, 5000], 10_000), now, effect(scatter), 0.1, requests_per_window)
    assert found is not None
    return found


def test_the_band_is_what_is_tolerated_and_what_the_reference_may_err_by() -> None:
    found = judged(shares([350, 350], 1000), Scatter(0.16, 2.0))
    half = 0.1 * 0.5 - ndtri(REFERENCE_RISK / 2) * np.sqrt(0.16 / 10_000)
    assert [found.value, found.reference] == pytest.approx([0.65, 0.5])
    assert [found.low, found.high] == pytest.approx([0.5 - half, 0.5 + half])
    error = np.sqrt(0.16 / 1000)
    assert found.statistic == pytest.approx((0.15 - half) / error)
    assert found.p_value == pytest.approx(ndtr((half - 0.15) / error))
    assert found.effect == pytest.approx(0.3)
    assert found.outside
    inside = judged(shares([450, 500], 1000), Scatter(0.16, 2.0))
    assert (inside.outside, inside.statistic) == (False, 0.0)
    assert inside.p_value > 0.5


def test_it_is_two_sided_and_more_requests_never_alarm_at_what_is_tolerated() -> None:
    denser = judged(shares([650, 650], 1000), Scatter(0.16, 2.0))
    assert denser.p_value == pytest.approx(judged(shares([350, 350], 1000), Scatter(0.16, 2.0)).p_value)
    million = judged(shares([460_000, 460_000], 1_000_000), Scatter(0.16, 2.0))
    assert million.p_value > 0.5


def test_scatter_is_bounded_by_channels_that_are_as_one() -> None:
    wide, narrow = effect(Scatter(9.0, 2.0)), effect(Scatter(0.01, 2.0))
    assert variance(wide, 0.5, 1000.0) == pytest.approx(0.25 * 2.0)
    assert variance(narrow, 0.5, 1000.0) == pytest.approx(0.01)
    assert variance(narrow, 0.5, 4000.0) == pytest.approx(0.04)  # what moves whole windows weighs with their size
    assert variance(wide, 0.5, 4000.0) == pytest.approx(0.25 * 5.0)
    assert variance(narrow, 0.5, 10.0) == pytest.approx(0.01)
    assert variance(effect(None), 0.5, 1000.0) == pytest.approx(0.25 * unknown(1).values[0])


@pytest.mark.parametrize(
    ("traffic", "least", "most"),
    [
        (Traffic("independent"), 0.25 / 64, 2.5 * 0.25 / 64),
        (Traffic("as one", 1.0), 0.25, 2.5 * 0.25),
        (Traffic("sessions of 4, as one", 1.0, session=4), 4 * 0.25, 2.5 * 4 * 0.25),
        (Traffic("moods", mood=0.05), 400 * 0.05**2, 2.5 * (400 * 0.05**2 + 0.25 / 64)),
    ],
    ids=lambda value: value.name if isinstance(value, Traffic) else "",
)
def test_windows_tell_how_channels_hang_together(traffic: Traffic, least: float, most: float) -> None:
    found = []
    for seed in range(9):
        windows = traffic.windows(40, 400, np.random.default_rng(seed))
        whole = shares(sum(w.fraction_sum for w in windows).tolist(), 40 * 400)  # type: ignore[union-attr]
        found.append(variance(known(whole, windows), 0.5, 400.0))
    assert least <= np.median(found) <= most


def test_moods_that_last_for_many_windows_are_seen_in_blocks() -> None:
    def median(memory: float) -> float:
        found = []
        for seed in range(9):
            traffic = Traffic("moods", mood=0.05, memory=memory)
            windows = traffic.windows(80, 200, np.random.default_rng(seed))
            whole = shares(sum(w.fraction_sum for w in windows).tolist(), 80 * 200)  # type: ignore[union-attr]
            scatter = known(whole, windows).sparsity
            assert scatter is not None
            found.append(scatter.variance)
        return float(np.median(found))

    assert median(0.9) > 2 * median(0.0)


def test_windows_that_are_not_the_reference_and_a_single_one_say_little() -> None:
    rng = np.random.default_rng(0)
    parts = Traffic("independent").windows(4, 400, rng)
    whole = shares(sum(w.fraction_sum for w in parts).tolist(), 1600)  # type: ignore[union-attr]
    assert known(whole, parts[:3]).sparsity is None
    alone = known(parts[0], parts[:1]).sparsity
    assert alone is not None
    assert alone.variance == np.inf
    assert alone.design_effect == pytest.approx(unknown(1).values[0])
    with pytest.raises(ValueError, match="2 channels, its reference 64"):
        Estimator(whole).add(shares([1, 1], 10))


def test_what_cannot_be_judged_is_not() -> None:
    with pytest.raises(ValueError, match="cannot compare 3 channels with a reference of 2"):
        judged(shares([1, 1, 1], 10))
    broken = replace(shares([0, 400], 1000), nonfinite=np.array([1000, 0]))
    assert np.isnan(share_of_zeros(broken))
    assert sparsity(shares([5000, 5000], 10_000), broken, effect(None), 0.1, 1000.0) is None
    silent = sparsity(shares([0, 0], 10_000), shares([0, 0], 1000), effect(None), 0.1, 1000.0)
    assert silent is not None
    assert (silent.value, silent.p_value, silent.effect) == (1.0, 1.0, 0.0)
    # Four active requests, all channels as one: no normal approximation, however far off it looks.
    sparse = sparsity(shares([100, 100], 10_000), shares([40, 40], 400), effect(None), 0.1, 400.0)
    assert sparse is not None
    assert (sparse.outside, sparse.p_value) == (True, 1.0)


@pytest.mark.parametrize(
    ("traffic", "windows"),
    [
        (Traffic("as one", 1.0), 3),
        (Traffic("sessions", 0.3, session=4), 10),
        (Traffic("99 % zeros", 0.3, zeros=0.99), 10),
        (Traffic("moods", 0.1, mood=0.05), 10),
        (Traffic("lasting moods", 0.1, mood=0.05, memory=0.9), 40),
    ],
    ids=lambda value: value.name if isinstance(value, Traffic) else str(value),
)
def test_the_budget_is_kept_while_nothing_happens(traffic: Traffic, windows: int) -> None:
    alarms, mean_e = quiet(traffic, windows, layers=6, windows=50, seed=3)
    assert alarms <= 3  # 6 * 50 windows at one alarm in 100
    assert mean_e < 1


@pytest.mark.parametrize("zeros", [0.5, 0.97])
@pytest.mark.parametrize("windows", [3, 12])
def test_a_shift_of_just_what_is_tolerated_is_none(zeros: float, windows: int) -> None:
    traffic = Traffic("tolerated", 0.1, zeros=zeros)
    alarms, mean_e = quiet(traffic, windows, layers=8, windows=50, shift=TOWARDS_HALF)
    assert alarms <= 4  # 8 * 50 windows at one alarm in 100
    assert mean_e < 1


def play(
    zeros: float, *, moved_input: bool = False, dead: int = 0, dead_before: int = 0, strong: float = 1.0
) -> tuple[Finding, ...]:
    """Findings of the last of some windows in which conv1 has another share of zeros than before, .5."""
    rng = np.random.default_rng(1)
    past = []
    for _ in range(20):
        past.append({p.name: summarise(rectified(rng, 400, p.channels or 1, 0.5)) for p in PROBES})
    before = layered(lambda: past)
    settings, evidence = CheckSettings(), dict[str, AlarmEvidence]()
    for _ in range(12):
        layers = {p.name: rectified(rng, 400, p.channels or 1, 0.5) for p in PROBES}
        layers["conv1"] = rectified(rng, 400, 128, zeros, strong)
        layers["conv1"][:, :dead] = 0
        layers["stem"][:, :dead_before] = 0
        layers["image"] *= 3 if moved_input else 1
        now = {name: summarise(values) for name, values in layers.items()}
        measured: Measured = measure(PROBES, before.summaries, now, settings, before.effects, 400.0)
        evidence = accumulate(evidence, measured, DAYS, settings)
    return conclude(*judge(measured, evidence, DAYS, settings))


def test_every_channel_a_little_less_active_is_told_of_the_layer() -> None:
    assert play(0.5) == ()
    (found,) = play(0.575)
    assert (found.layer, found.test, found.cause, found.origin) == ("conv1", "sparsity", "model_change", True)
    assert (found.alert, found.severity) == ("ReluscopeActivationDrift", "warning")
    assert found.channels == tuple(range(128))
    assert found.effect == pytest.approx(0.15, abs=0.03)
    assert found.summary.startswith("conv1: 57.")
    assert "% zero in 400 requests; the band of the reference is 44." in found.summary
    assert found.details["sparsity_high"] < found.details["sparsity"]
    assert len(found.evidence) == 10
    assert found.evidence[0].label == "sparser"
    assert re.fullmatch(
        r"channel \d+ of conv1: 6\d(\.\d)? % zero, reference (49|50|51)(\.\d)? %", found.evidence[0].text
    )
    assert found.evidence[0].effect >= found.evidence[-1].effect > 0
    json.dumps(asdict(found), allow_nan=False)


def test_moved_inputs_and_dead_channels_before_it_explain_it() -> None:
    found = {f.layer: f for f in play(0.575, moved_input=True)}
    assert (found["conv1"].test, found["conv1"].cause) == ("sparsity", "input_shift")
    assert found["conv1"].alert == "ReluscopeInputShift"
    stem, conv1 = play(0.575, dead_before=1)
    assert (stem.test, stem.origin) == ("dead", True)
    assert (conv1.test, conv1.cause, conv1.origin) == ("sparsity", "dead_neurons", False)
    assert conv1.alert == "ReluscopeActivationDrift"


def test_a_layer_that_is_told_of_already_is_not_told_of_twice() -> None:
    (drifted,) = play(0.575, strong=1.6)
    assert drifted.test == "drift"
    assert "PSI" in drifted.summary
    assert "% zero in 400 requests; the band of the reference is" in drifted.summary
    assert drifted.details["sparsity"] > drifted.details["sparsity_high"]
    assert {f.test for f in play(0.5, dead=20)} == {"dead"}


def test_a_window_back_in_the_band_says_so_while_the_alarm_lasts() -> None:
    zeros = judged(shares([480, 480], 1000), Scatter(0.16, 2.0))
    assert sparsity_sentence(zeros).endswith("%, which earlier windows left")


def test_convolutions_count_positions() -> None:
    rng = np.random.default_rng(0)
    fractions = rng.random((500, 4))
    summary = reduce(merge, [from_pooled(part, part, part) for part in np.split(fractions, 5)])
    assert share_of_zeros(summary) == pytest.approx(1 - fractions.mean())
