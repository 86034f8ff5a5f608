"""False alarms of the sparsity band, and how soon it sees what no channel shows.

Every simulated layer has a reference of its own, frozen, made of windows like those that follow. Channels hang together
by a share of every request that is common to them; requests may come in sessions of equal ones; a mood of the traffic
makes all channels more or less active, and lasts for several windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from agent.summary import Summary, empty, from_pooled, merge
from agent.summary.histogram import Floats
from detector.statistics.design_effect import DesignEffect, estimate, unknown
from detector.statistics.drift import drift
from detector.statistics.reference_error import REFERENCE_RISK
from detector.statistics.sequential import AlarmEvidence, advance, calibrate, threshold
from detector.statistics.sparsity import Estimator, sparsity
from tests.statistics.pages import Page
from tests.statistics.parallel import spread
from tests.statistics.rates import most_alarms
from tests.statistics.tables import table

MIN_EFFECT = 0.1
REQUESTS = 400
REFERENCES = (3, 10, 40, 160)
"""Windows of references."""
BUDGET = 100.0
"""Windows between false alarms where nothing happens: short, so that the figures mean something."""
LAYERS, WINDOWS_PER_DAY = 20, 288
"""Of the model whose delays are told: the other layers stay as they were."""
PATIENCE = 60
"""Windows that a change is followed for; half as many once one of the two tests has told it."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What requests do to one layer; every activation is zero with probability ``zeros``."""

    name: str
    correlation: float = 0.0
    """Of what two channels make of one request, before it is cut to active or not."""
    session: int = 1
    mood: float = 0.0
    """Standard deviation of the share of zeros from window to window."""
    memory: float = 0.0
    """Correlation of the moods of neighbouring windows."""
    zeros: float = 0.5
    channels: int = 64

    def masks(self, count: int, n: int, rng: np.random.Generator, shift: float = 0.0) -> Iterator[Mask]:
        """Which activations are not zero, window by window, shape (n, channels); less by ``shift`` deviations."""
        mood = rng.normal()
        for _ in range(count):
            mood = self.memory * mood + np.sqrt(1 - self.memory**2) * rng.normal()
            active = 1 - self.zeros - shift * np.sqrt(self.zeros * (1 - self.zeros))
            active += self.mood * float(np.clip(mood, -3, 3))
            own = rng.standard_normal((n // self.session, self.channels), dtype=np.float32)
            common = rng.standard_normal((n // self.session, 1), dtype=np.float32)
            latent = np.sqrt(1 - self.correlation) * own + np.sqrt(self.correlation) * common
            yield np.repeat(latent < ndtri(np.clip(active, 1e-9, 1 - 1e-9)), self.session, axis=0)

    def windows(self, count: int, n: int, rng: np.random.Generator, shift: float = 0.0) -> list[Summary]:
        """Summaries of the shares alone, which is all that the test of sparsity reads."""
        return [_shares(mask.sum(axis=0), len(mask)) for mask in self.masks(count, n, rng, shift)]


QUIET = [
    Traffic("independent channels"),
    Traffic("channels correlated .3", 0.3),
    Traffic("channels as one", 1.0),
    Traffic("sessions of 4, correlated .3", 0.3, session=4),
    Traffic("99 % zeros, correlated .3", 0.3, zeros=0.99),
    *(
        Traffic(f"moods of {mood:g}, memory {memory:g}, correlated .1", 0.1, mood=mood, memory=memory)
        for mood in (0.02, 0.05, 0.1)
        for memory in (0.0, 0.5, 0.9, 0.98)
    ),
]
TOLERATED = [QUIET[0], QUIET[1], QUIET[4]]
TOWARDS_HALF = -MIN_EFFECT
"""More active by exactly what is tolerated: then a sparse layer varies more than its reference did."""
WIDE = [
    Traffic("independent channels", channels=256),
    Traffic("channels correlated .1", 0.1, channels=256),
    Traffic("channels correlated .3", 0.3, channels=256),
]


def quiet(
    traffic: Traffic, reference_windows: int, layers: int, windows: int, seed: int = 0, shift: float = 0.0
) -> tuple[int, float]:
    """Alarms and the mean e-value of so many layers followed for so many windows each, in which nothing happens or
    every channel shifts by no more than is tolerated."""
    rng, alarms, seen = np.random.default_rng(seed), 0, []
    for _ in range(layers):
        past = traffic.windows(reference_windows, REQUESTS, rng)
        whole = _shares(np.sum([w.fraction_sum for w in past], axis=0), REQUESTS * reference_windows)
        effect = known(whole, past)
        evidence = AlarmEvidence()
        for now in traffic.windows(windows, REQUESTS, rng, shift):
            e = _e(whole, now, effect)
            was, evidence = evidence.alarm, advance(evidence, {"layer": e}, 1.0, BUDGET)
            alarms += int(evidence.alarm and not was)
            seen.append(float(e[0]))
    return alarms, float(np.mean(seen))


def known(whole: Summary, past: Sequence[Summary]) -> DesignEffect:
    """What a reference's windows say of its sparsity."""
    estimator = Estimator(whole)
    for window in past:
        estimator.add(window)
    blank = unknown(whole.channels)
    return DesignEffect(blank.values, 1.0, len(past), whole.n / len(past), estimator.result())


def delays(
    traffic: Traffic, shift: float, reference_windows: int, n: int, models: int, seed: int = 0
) -> tuple[list[float], list[float]]:
    """Windows until the band, and until drift, tells that every channel is active less by ``shift`` deviations."""
    rng = np.random.default_rng(seed)
    limit = threshold(90) * WINDOWS_PER_DAY * LAYERS
    by_band, by_drift = [], []
    for _ in range(models):
        past = [_values(mask, rng) for mask in traffic.masks(reference_windows, n, rng)]
        whole = reduce(merge, past)
        effect = replace(estimate(whole, past), sparsity=known(whole, past).sparsity)
        levels = {"band": AlarmEvidence(), "drift": AlarmEvidence()}
        found = {"band": np.inf, "drift": np.inf}
        for number, mask in enumerate(traffic.masks(PATIENCE, n, rng, shift), start=1):
            now = _values(mask, rng)
            result = drift(whole, now, MIN_EFFECT, design_effect=effect.values, reference_risk=REFERENCE_RISK)
            newest = {"band": _e(whole, now, effect), "drift": calibrate(result.p_parts)}
            for name, e in newest.items():
                levels[name] = advance(levels[name], {"layer": e}, 1.0, limit)
                if levels[name].alarm:
                    found[name] = min(found[name], number)
            if max(found.values()) < np.inf or (number == PATIENCE // 2 and min(found.values()) < np.inf):
                break
        by_band.append(found["band"])
        by_drift.append(found["drift"])
    return by_band, by_drift


@dataclass(frozen=True, slots=True)
class _Quiet:
    traffic: Traffic
    shift: float
    reference_windows: int
    layers: int
    windows: int
    seed: int


@dataclass(frozen=True, slots=True)
class _Changed:
    traffic: Traffic
    shift: float
    n: int
    models: int
    seed: int


def page(layers: int, windows: int, models: int, workers: int, seed: int = 0) -> Page:
    """False alarms of so many layers per case and size of reference, followed for so many windows, and delays of so
    many models per change."""
    tolerated = [(replace(traffic, name=f"{traffic.name}, shifted by δ"), TOWARDS_HALF) for traffic in TOLERATED]
    cases = [*((traffic, 0.0) for traffic in QUIET), *tolerated]
    calm = [_Quiet(*case, size, layers, windows, seed) for case in cases for size in REFERENCES]
    alarms = list(spread("sparsity, quiet", _alarms, calm, workers))
    moved = [_Changed(traffic, s, n, models, seed) for n in (400, 1000) for s in (0.15, 0.2) for traffic in WIDE]
    found = list(spread("sparsity, changed", _medians, moved, workers))
    return Page("Sparsity", _text(calm, alarms, moved, found), _figures(calm, alarms, moved, found))


def _alarms(case: _Quiet) -> int:
    return quiet(case.traffic, case.reference_windows, case.layers, case.windows, case.seed, case.shift)[0]


def _medians(case: _Changed) -> tuple[float, float]:
    band, drifted = delays(case.traffic, case.shift, REFERENCES[2], case.n, case.models, case.seed)
    return float(np.median(band)), float(np.median(drifted))


def _text(
    calm: Sequence[_Quiet], alarms: Sequence[int], moved: Sequence[_Changed], found: Sequence[tuple[float, float]]
) -> str:
    expected = calm[0].layers * calm[0].windows / BUDGET
    most = most_alarms(expected)
    rows: dict[str, list[str]] = {}
    for case, count in zip(calm, alarms, strict=True):
        rows.setdefault(case.traffic.name, []).append(f"{count}" if count <= most else f"**{count}**")
    silence = table(
        ["traffic", *(f"reference of {size} windows" for size in REFERENCES)],
        [[name, *counts] for name, counts in rows.items()],
    )
    told = [
        [f"{case.n}", f"{case.shift:g}", case.traffic.name, *(_within(median) for median in medians)]
        for case, medians in zip(moved, found, strict=True)
    ]
    return (
        f"## While nothing happens\n\nFalse alarms of {calm[0].layers} layers followed for {calm[0].windows} windows "
        f"of {REQUESTS} requests, at a budget that allows {expected:.0f}; more than chance allows is bold.\n\n"
        f"{silence}\n"
        "## When every channel is a little less active\n\nMedian of windows until it is told, in one of "
        f"{LAYERS} layers, at a budget of 90 days of windows of five minutes, reference of {REFERENCES[2]} windows: by "
        "the band of the layer and by the drift of its 256 channels.\n\n"
        + table(["requests per window", "shift, standard deviations", "traffic", "band", "drift"], told)
    )


def _figures(
    calm: Sequence[_Quiet], alarms: Sequence[int], moved: Sequence[_Changed], found: Sequence[tuple[float, float]]
) -> dict[str, list[dict[str, object]]]:
    return {
        "quiet": [
            {
                "traffic": case.traffic.name, "reference_windows": case.reference_windows, "layers": case.layers,
                "windows": case.windows, "budget_windows": BUDGET, "alarms": count,
            }
            for case, count in zip(calm, alarms, strict=True)
        ],
        "changed": [
            {
                "traffic": case.traffic.name, "shift": case.shift, "n": case.n,
                **{who: m if np.isfinite(m) else None for who, m in zip(("band", "drift"), medians, strict=True)},
            }
            for case, medians in zip(moved, found, strict=True)
        ],
    }  # fmt: skip


def _within(median: float) -> str:
    return f"{median:.0f}" if np.isfinite(median) else f"> {PATIENCE // 2}"


def _e(whole: Summary, now: Summary, effect: DesignEffect) -> Floats:
    result = sparsity(whole, now, effect, MIN_EFFECT, effect.requests_per_window)
    return calibrate(np.array([1.0 if result is None else result.p_value]))


def _shares(active: NDArray[np.generic], n: int) -> Summary:
    shares = np.asarray(active, np.float64)
    return replace(empty(len(shares)), n=n, active=shares.astype(np.int64), fraction_sum=shares, fraction_sq_sum=shares)


def _values(mask: Mask, rng: np.random.Generator) -> Summary:
    values = np.where(mask, rng.standard_gamma(2.0, mask.shape, dtype=np.float32), 0.0)
    return from_pooled(values, values, mask.astype(np.float64))
