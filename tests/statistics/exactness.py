"""Do summaries lose anything: shards against a single pass, verdicts from histograms against scipy's on raw values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom, chi2_contingency, mannwhitneyu, wasserstein_distance

from agent.summary import Summary, from_pooled, merge
from agent.summary.histogram import Floats
from detector.statistics.dead import dead
from detector.statistics.drift import drift, normed_wasserstein
from tests.statistics.laws import stretch_at, zeros_at
from tests.statistics.scenarios import Source

COUNTED = ("n", "active", "nonfinite", "lowest_mean", "highest_max")
SUMMED = ("fraction_sum", "fraction_sq_sum", "mean", "m2")
LEVEL = 1e-3


@dataclass(frozen=True, slots=True)
class Merging:
    """Shards, merged in many orders, against one pass over all requests."""

    orders: int
    identical: bool
    """All counts, extremes and histograms are the same, bit for bit, and so are the p-values of drift and death."""
    moments: float
    """Largest relative difference of sums and moments, which float arithmetic rounds."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One kind of change: the verdicts on histograms and on raw values."""

    change: str
    channels: int
    found: float
    """Share of channels that the histogram's p-value rejects at `LEVEL`."""
    found_exact: float
    """Share that scipy rejects on the raw values."""
    same: float
    """Share of channels with the same verdict."""
    death: float
    """Largest difference of the death p-value from scipy's beta-binomial."""
    distance: float
    """Largest relative error of the Wasserstein distance."""


def merging(orders: int = 50, requests: int = 3000, channels: int = 40, seed: int = 0) -> Merging:
    """Random shards of random requests, some of them not finite, merged in random order and nesting."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((requests, channels)) < 0.5, 0.0, rng.lognormal(sigma=4, size=(requests, channels)))
    values[rng.random(values.shape) < 1e-3] = np.nan
    fraction = rng.random(values.shape) * (values > 0)
    before = _summary(rng.lognormal(sigma=4, size=(1000, channels)))
    whole = _pooled(values, fraction)
    p_values = _verdict(before, whole)
    identical, worst = True, 0.0
    for _ in range(orders):
        cuts = np.sort(rng.integers(0, requests + 1, size=int(rng.integers(1, 30))))
        order = rng.permutation(requests)
        shards = [_pooled(values[rows], fraction[rows]) for rows in np.split(order, cuts)]
        while len(shards) > 1:  # neighbours in random pairs: every way of nesting may occur
            at = int(rng.integers(len(shards) - 1))
            shards[at : at + 2] = [merge(shards[at], shards[at + 1])]
        merged = shards[0]
        identical &= _same(merged, whole) and np.array_equal(_verdict(before, merged), p_values)
        worst = max(worst, *(_difference(getattr(merged, name), getattr(whole, name)) for name in SUMMED))
    return Merging(orders, identical, worst)


def agreements(channels: int = 500, seed: int = 0) -> list[Agreement]:
    """Healthy and changed channels of several kinds, 1 000 requests against 500."""
    changes = {
        "nothing": (Source(0.5), Source(0.5)),
        "values ω 0.3": (Source(0.5), Source(0.5, stretch=stretch_at(0.3))),
        "values ω 0.5": (Source(), Source(stretch=stretch_at(0.5))),
        "zeros ω 0.3": (Source(0.5), Source(zeros_at(0.3, 0.5))),
        "heavy tails, values ω 0.3": (Source(0.0, "heavy"), Source(0.0, "heavy", stretch_at(0.3, "heavy"))),
        "silent": (Source(0.9), Source(1.0)),
    }
    rng = np.random.default_rng(seed)
    return [_agreement(name, before, now, channels, rng) for name, (before, now) in changes.items()]


def _agreement(name: str, before: Source, now: Source, channels: int, rng: np.random.Generator) -> Agreement:
    old, new = before.draw(channels, 1000, rng).T, now.draw(channels, 500, rng).T
    reference, current = _summary(old), _summary(new)
    result, death = drift(reference, current, 0.0), dead(reference, current)
    exact = np.array([_exact(old[:, c], new[:, c], int(result.bins[c])) for c in range(channels)])
    ours, theirs = result.p_value <= LEVEL, exact <= LEVEL
    tested = death.p_value < 1
    k, n, k0, n0 = (values[tested] for values in (death.active, death.n, death.active_reference, death.n_reference))
    oracle = betabinom.cdf(k, n, k0 + 0.5, n0 - k0 + 0.5)
    some = np.arange(min(channels, 50))
    scale = old.std(axis=0)
    distances = np.array([wasserstein_distance(old[:, c], new[:, c]) / scale[c] for c in some])
    far = normed_wasserstein(reference, current, some)
    return Agreement(
        name,
        channels,
        float(ours.mean()),
        float(theirs.mean()),
        float((ours == theirs).mean()),
        float(np.abs(death.p_value[tested] - oracle).max(initial=0.0)),
        # Relative to a tenth of a deviation at least: without a shift the distance is noise.
        float((np.abs(far - distances) / np.maximum(distances, 0.1)).max()),
    )


def _exact(old: Floats, new: Floats, bins: int) -> float:
    """What an analyst does with the raw values: zeros in a 2x2 table, the others in the reference's quantiles and by
    their ranks."""
    table = np.array([[(old == 0).sum(), (old != 0).sum()], [(new == 0).sum(), (new != 0).sum()]])
    parts = [chi2_contingency(table, correction=True).pvalue] if table.sum(axis=0).all() else []
    if bins >= 2:
        cuts = np.quantile(old[old != 0], np.arange(1, bins) / bins)
        counts = [np.bincount(np.searchsorted(cuts, x[x != 0]), minlength=bins) for x in (old, new)]
        parts.append(chi2_contingency(counts, correction=False).pvalue)
    if bins >= 3:
        parts.append(mannwhitneyu(old[old != 0], new[new != 0]).pvalue)
    return float(min(1.0, len(parts) * min(parts, default=1.0)))


def _summary(values: Floats) -> Summary:
    return _pooled(values, (values > 0).astype(np.float64))


def _pooled(values: Floats, fraction: Floats) -> Summary:
    return from_pooled(values, values, fraction)


def _verdict(before: Summary, now: Summary) -> Floats:
    return np.concatenate([drift(before, now).p_value, dead(before, now).p_value])


def _same(a: Summary, b: Summary) -> bool:
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COUNTED)
        and a.mean_histogram.same_as(b.mean_histogram)
        and a.max_histogram.same_as(b.max_histogram)
    )


def _difference(a: Floats, b: Floats) -> float:
    return float((np.abs(a - b) / np.maximum(np.abs(b), 1e-300)).max())
