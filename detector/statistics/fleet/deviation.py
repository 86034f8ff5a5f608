"""Tests every agent's layers against the fleet, on one batch of windows.

An agent's mean of a layer is compared with the median over agents, which one odd agent hardly moves. The unit is the
layer's standard deviation in the reference, averaged over channels. An average over channels varies most where all of
them move together, and then its standard deviation is that unit; so sampling variances from it are upper bounds,
whatever the correlation between channels is. They carry the reference's design effect, and the median's own variance is
at most pi/2 times that of a mean.

    H0: |x - median| <= tolerance * unit + factor * tau

The effect lies inside the null. tau is how much the agents differ by nature, as where sessions stick to pods: the
median absolute deviation beyond what sampling explains. So a fleet whose pods see unlike traffic sets its own
tolerance. In small fleets such an estimate is poor, and the factor is larger; see `SPREAD_FACTORS`.

Requests that are not finite are counted instead: exact binomial, against the upper bound of the other agents' share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.summary import Summary
from agent.summary.histogram import Floats, Ints
from agent.wire import Probe
from detector.statistics.correction import Mask
from detector.statistics.design_effect import DesignEffect, unknown
from detector.statistics.fleet.scalars import Agents, Scalars
from detector.statistics.proportions import beyond, share_above
from detector.statistics.reference_error import REFERENCE_RISK

SCALARS = ("active share", "mean", "share of non-finite values")
"""What is compared of each layer, the last axis of arrays below."""
SHARE, MEAN, NONFINITE = range(3)
LEAST_AGENTS = 3
"""Of two that differ nobody knows which is odd."""
SPREAD_FACTORS = ((3, 22.0), (4, 7.8), (5, 7.8), (6, 5.5), (8, 4.9), (10, 4.6), (15, 4.3), (20, 4.0), (50, 3.8))
"""By number of agents: what the largest distance from the median exceeds, in 1.4826 median absolute deviations, in one
of twenty samples of so many normal values (100 000 draws). At a factor of 3 it is one fleet in three to five."""
RARE = 10.0
"""A share's variance is that of at least so many exceptions: of fewer the normal law's tail is too light."""
ACTIVE = 10.0
"""Active requests that an agent must have in a rectifier for the normal law to hold for its mean."""


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """One batch. Arrays have shape (agents, layers, scalars), or less where said."""

    agents: tuple[str, ...]
    """All with a window in the batch, sorted."""
    probes: tuple[Probe, ...]
    """All of the model version in graph order, compared or not."""
    n: Ints
    """Requests; shape (agents, layers)."""
    values: Floats
    p_values: Floats
    """1 where there was no test."""
    tested: Mask
    centres: Floats
    """The fleet's median, of the non-finite the whole fleet's share; shape (layers, scalars)."""
    reference: Floats
    """Shape (layers, scalars)."""
    units: Floats
    """Standard deviations in the reference, now where it had none, 1 for the non-finite; shape (layers, scalars)."""

    @property
    def distances(self) -> Floats:
        """From the centre, in standard deviations of the reference."""
        units = np.where(self.units > 0, self.units, 1.0)
        return np.where(self.tested, np.abs(self.values - self.centres) / units, 0.0)


def compare(
    scalars: Agents,
    probes: Sequence[Probe],
    reference: Mapping[str, Summary],
    current: Mapping[str, Summary],
    effects: Mapping[str, DesignEffect],
    requests_per_window: float = 0.0,
    tolerance: float = 0.1,
    least_requests: int = 30,
) -> Fleet | None:
    """Compares the agents of a batch; None where there are fewer than `LEAST_AGENTS`.

    ``current`` is all agents merged: where the whole fleet varies more than the reference did, its variance counts.
    ``tolerance`` is in standard deviations of the reference. Agents with fewer than ``least_requests`` in a layer are
    not tested there, and nobody is where fewer than `LEAST_AGENTS` have as many.
    """
    if len(scalars) < LEAST_AGENTS:
        return None
    ordered = tuple(sorted(probes, key=lambda probe: (probe.position, probe.name)))
    agents = tuple(sorted(scalars))
    shape = (len(agents), len(ordered), len(SCALARS))
    n, values, tested = np.zeros(shape[:2], np.int64), np.zeros(shape), np.zeros(shape, np.bool_)
    p_values = np.ones(shape)
    centres, before, units = np.zeros(shape[1:]), np.zeros(shape[1:]), np.zeros(shape[1:])
    for i, probe in enumerate(ordered):
        seen = np.array([agent for agent, name in enumerate(agents) if probe.name in scalars[name]], np.int64)
        mine = [scalars[agents[agent]][probe.name] for agent in seen]
        old, new = reference.get(probe.name), current.get(probe.name)
        if not mine or old is None or new is None or old.channels != new.channels:
            continue
        effect = (effects.get(probe.name) or unknown(old.channels)).at(requests_per_window)
        layer = _Layer(mine, old, new, effect, tolerance, least_requests)
        active = ACTIVE if probe.exact_zero else 0.0
        for scalar, (x, p, used, centre) in enumerate((layer.shares(), layer.means(active), layer.losses())):
            values[seen, i, scalar], p_values[seen, i, scalar], tested[seen, i, scalar] = x, p, used
            centres[i, scalar] = centre
        n[seen, i] = [one.n for one in mine]
        before[i], units[i] = layer.reference, layer.units
    return Fleet(agents, ordered, n, values, p_values, tested, centres, before, units)


_Outcome = tuple[Floats, Floats, Mask, float]
"""Values, p-values, what was tested, and the centre."""


class _Layer:
    """One layer of the agents that saw it."""

    def __init__(
        self, agents: Sequence[Scalars], old: Summary, new: Summary, effect: Floats, tolerance: float, least: int
    ) -> None:
        self._agents, self._effect, self._tolerance, self._least = agents, float(effect.mean()), tolerance, least
        self.n = np.array([one.n for one in agents], np.float64)
        self._requests = np.array([one.requests for one in agents], np.float64)
        then, now = _variances(old), _variances(new)
        lost = float(old.nonfinite.sum()) / max(old.n * old.channels, 1)
        finite = max(float(old.finite.sum()), 1.0)
        self.reference = np.array([old.active.sum() / finite, np.dot(old.mean, old.finite) / finite, lost])
        both = list(zip(then, now, strict=True))
        self._units = [max(_deviation(a), _deviation(b)) for a, b in both]
        self.units = np.array([*(_deviation(a) or unit for a, unit in zip(then, self._units, strict=True)), 1.0])
        # Of one request's average over channels, at most, with the design effect of each channel.
        self._variances = [max(_deviation(a * effect), _deviation(b * effect)) ** 2 for a, b in both]

    def shares(self) -> _Outcome:
        x = np.array([one.active_share for one in self._agents])
        floor = RARE * self._effect / np.maximum(self._requests, 1) ** 2
        return self._outcome(x, SHARE, np.ones(len(x), np.bool_), floor)

    def means(self, active: float) -> _Outcome:
        x = np.array([one.mean for one in self._agents])
        typical = np.median([one.active_share for one in self._agents])
        return self._outcome(x, MEAN, self._requests * typical >= active, np.zeros(len(x)))

    def losses(self) -> _Outcome:
        """The share of requests that are not finite, against all other agents' together."""
        lost = np.array([one.lost for one in self._agents])
        pairs = np.array([one.nonfinite for one in self._agents], np.float64)
        usable = self.n >= self._least
        others = self.n.sum() - self.n
        # The fewest requests that may be concerned here, against the most that may be elsewhere.
        most = np.minimum(pairs.sum() - pairs, others)
        k, n, k_others, n_others = (count / self._effect for count in (np.ceil(lost), self.n, most, others))
        # Nearer to 0 than the square of the tolerance any share is within it.
        p = share_above(k, n, k_others, n_others, REFERENCE_RISK, self._tolerance**2)
        enough = usable & (usable.sum() >= LEAST_AGENTS)
        shares = lost / np.maximum(self.n, 1)
        return shares, np.where(enough, p, 1.0), enough, float(lost.sum() / max(self.n.sum(), 1))

    def _outcome(self, x: Floats, scalar: int, usable: Mask, floor: Floats) -> _Outcome:
        known = self._requests >= self._least
        usable = usable & known
        unit = self._units[scalar]
        centre = float(np.median(x[known])) if known.any() else 0.0
        if usable.sum() < LEAST_AGENTS or not unit > 0:
            return x, np.ones(len(x)), np.zeros(len(x), np.bool_), centre
        variance = np.maximum(self._variances[scalar] / np.maximum(self._requests, 1), floor)
        p, centre = _outside(x[usable], variance[usable], self._tolerance * unit)
        p_values = np.ones(len(x))
        p_values[usable] = p
        return x, p_values, usable, centre


def _outside(x: Floats, variance: Floats, tolerance: float) -> tuple[Floats, float]:
    """P-values for "within tolerance of the median", two-sided, and the median; ``variance`` is of each value."""
    centre, typical = float(np.median(x)), float(np.median(variance))
    distance = np.abs(x - centre)
    spread = 1.4826 * float(np.median(distance))
    tau = math.sqrt(max((spread - math.sqrt(typical)) * (spread + math.sqrt(typical)), 0.0))
    factor = spread_factor(len(x))
    # A spread that is estimated moves the tolerance by as much as sampling moves the values that it is read off.
    estimated = factor**2 * typical if tau > 0 else 0.0
    deviation = np.sqrt(variance + math.pi / 2 * typical / len(x) + estimated)
    margin = (tolerance + factor * tau) / deviation
    z = distance / deviation
    # Where a whole fleet's values overflow, both are infinite.
    return np.nan_to_num(beyond(z, margin), nan=1.0), centre


def spread_factor(agents: int) -> float:
    """How many natural spreads an agent may lie from the median in a fleet of so many; see `SPREAD_FACTORS`."""
    sizes, factors = zip(*SPREAD_FACTORS, strict=True)
    return float(np.interp(agents, sizes, factors))


def _deviation(variance: Floats) -> float:
    """Of the average over channels where all of them move together, and at most otherwise."""
    return float(np.sqrt(variance).mean())


def _variances(summary: Summary) -> tuple[Floats, Floats]:
    """Of one request, per channel: of being active or not, and of the pooled mean; 0 where that overflowed."""
    n = np.maximum(summary.finite, 1)
    p = summary.active / n
    return p * (1 - p), np.where(np.isfinite(summary.m2), summary.m2, 0) / n
