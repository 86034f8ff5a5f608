"""`python -m tests.statistics.sparsity`: false alarms of the sparsity band, and how soon it sees what no channel shows.

Every simulated layer has a reference of its own, frozen, made of windows like those that follow. Channels hang together
by a share of every request that is common to them; requests may come in sessions of equal ones; a mood of the traffic
makes all channels more or less active, and lasts for several windows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from agent.summary import Summary, empty, from_pooled, merge
from agent.summary.histogram import Floats
from detector.design_effect import DesignEffect, estimate, unknown
from detector.drift import REFERENCE_RISK, drift
from detector.sequential import Evidence, advance, calibrate, threshold
from detector.sparsity import Estimator, sparsity

MIN_EFFECT = 0.1
REQUESTS = 400
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
        evidence = Evidence()
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
        levels = {"band": Evidence(), "drift": Evidence()}
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


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.statistics.sparsity", description=__doc__)
    parser.add_argument("--layers", type=int, default=20, help="per null and size of reference")
    parser.add_argument("--windows", type=int, default=200, help="that each layer is followed for")
    parser.add_argument("--models", type=int, default=9, help="per change")
    options = parser.parse_args()
    sizes = (3, 10, 40, 160)
    allowed = options.layers * options.windows / BUDGET
    print(f"false alarms, {allowed:.0f} allowed; by windows of {REQUESTS} requests in the reference")
    print(f"{'':46}" + "".join(f"{size:>8}" for size in sizes))
    tolerated = [(replace(traffic, name=f"{traffic.name}, shifted by δ"), TOWARDS_HALF) for traffic in TOLERATED]
    for traffic, shift in [*((traffic, 0.0) for traffic in QUIET), *tolerated]:
        alarms = [quiet(traffic, size, options.layers, options.windows, shift=shift)[0] for size in sizes]
        print(f"{traffic.name:46}" + "".join(f"{count:8}" for count in alarms), flush=True)
    print(f"\nwindows until it is told, median: the band, drift; never: not within {PATIENCE // 2} windows")
    for n in (400, 1000):
        for shift in (0.15, 0.2, 0.3):
            for traffic in WIDE:
                found = delays(traffic, shift, 40, n, options.models)
                band, channels = (f"{m:.0f}" if np.isfinite(m := np.median(one)) else "never" for one in found)
                print(f"{n:5} requests, shift {shift:4}, {traffic.name:26}{band:>8}{channels:>8}", flush=True)


def _e(whole: Summary, now: Summary, effect: DesignEffect) -> Floats:
    result = sparsity(whole, now, effect, MIN_EFFECT, effect.requests_per_window)
    return calibrate(np.array([1.0 if result is None else result.p_value]))


def _shares(active: NDArray[np.generic], n: int) -> Summary:
    shares = np.asarray(active, np.float64)
    return replace(empty(len(shares)), n=n, active=shares.astype(np.int64), fraction_sum=shares, fraction_sq_sum=shares)


def _values(mask: Mask, rng: np.random.Generator) -> Summary:
    values = np.where(mask, rng.standard_gamma(2.0, mask.shape, dtype=np.float32), 0.0)
    return from_pooled(values, values, mask.astype(np.float64))


if __name__ == "__main__":
    main()
