"""AlarmEvidence over time: an alarm budget for ever, instead of a p-value per check.

Every channel of every layer has an e-Shiryaev-Roberts process of its own, or one for each part of its test. In a window
of ``d`` days with e-value ``e``,

    R <- (R + d) * e,

and a model's level in one test family is the mean over layers of the mean over the layer's processes,

    M = mean_l mean_r R.

Where each window's e-values have expectation at most 1 under no change, given all windows before, R is expected to
grow by at most ``d``, and so is every mean of such processes, however the channels depend on each other: M less the
days elapsed is a supermartingale. So the expected time until M reaches A is at least A days, P(alarm within t days) is
at most t / A, and with a restart after every alarm at most t / A false alarms are expected in t days.

The mean is taken over the processes and not over each window's e-values. A single shifted channel of a thousand then
pays the factor 1 000 once; a mean of e-values would ask it of every window, and never see a shift that is not enormous.
For the same reason the parts of a channel's test are not joined to one p-value in every window.

Time is counted in days, so the threshold is the budget itself and needs no length of window: irregular, joined and
missing windows are all right. The same windows must never be used twice, and the reference must stay as it is.

Sources: Shin, Ramdas and Rinaldo, "E-detectors" (2024), for the e-Shiryaev-Roberts process and mixtures of it; Vovk and
Wang, "E-values" (2021), for the calibrator.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from agent.summary.histogram import Floats

FAMILIES = ("drift", "dead", "explosion", "sparsity", "fleet")
"""Test families that alarm on their own; each has a part of the budget. The groups of "fleet" are agents."""
SHARES = len(FAMILIES) + 1
"""Parts of the budget: one for each family, and one for all paired tests together."""
MAX_E = 1e15
"""Largest e-value of one window. Two such windows exceed any sensible budget; no p-value is exact further out."""
IDLE = 0.5
"""The e-value of a test that says nothing, p = 1."""
CEILING = 10.0
"""Of the threshold: evidence above it is forgotten, so that an alarm ends a few windows after its cause has."""


@dataclass(frozen=True, slots=True)
class AlarmEvidence:
    """One test family's evidence against one model version since it began to count."""

    layers: Mapping[str, Floats] = field(default_factory=dict)
    """R per process, in days; shape (channels,) or (channels, parts) each. Of "fleet": per agent, of its layers and
    scalars."""
    days: float = 0.0
    """Days of windows since the start, or since the end of the last alarm."""
    alarm: bool = False

    @property
    def level(self) -> float:
        """M, in days: the mean over layers of the mean over their processes."""
        means = [float(values.mean()) for values in self.layers.values() if values.size]
        return sum(means) / len(means) if means else 0.0


def threshold(false_page_days: float, shares: int = SHARES) -> float:
    """A, in days, so that ``shares`` detectors together page falsely at most once in ``false_page_days``.

    Raises ValueError where either is not positive.

    >>> threshold(90, shares=3)
    270.0
    """
    if not false_page_days > 0 or shares < 1:
        raise ValueError(f"false_page_days must be positive and shares at least 1: {false_page_days}, {shares}")
    return shares * float(false_page_days)


def calibrate(p_value: Floats, largest: float = MAX_E) -> Floats:
    """The e-value p^(-1/2) / 2, at most ``largest``: its mean is 1 where p is uniform, less where p is conservative.

    >>> calibrate(np.array([1.0, 0.25, 1e-4, 0.0]), 1e6).tolist()
    [0.5, 1.0, 50.0, 1000000.0]
    """
    floor = 0.25 / largest**2
    return np.asarray(np.minimum(0.5 / np.sqrt(np.maximum(p_value, floor)), largest), np.float64)


def advance(before: AlarmEvidence, e_values: Mapping[str, Floats], days: float, limit: float) -> AlarmEvidence:
    """Takes in one window of ``days`` days; ``limit`` is `threshold`'s A.

    A layer that this window lacks stays as it was but for the time; in an alarm its evidence halves, or an alarm on
    what is observed no more would never end. One that was not there before, or had another shape, starts at zero. An
    alarm holds until the level is below ``limit`` again; then all starts anew.
    Raises ValueError where ``days`` or ``limit`` is not positive, or an e-value is negative or NaN.
    """
    if not days > 0 or not limit > 0:
        raise ValueError(f"days and limit must be positive: {days}, {limit}")
    layers: dict[str, Floats] = {
        name: (values + days) * (IDLE if before.alarm and name not in e_values else 1.0)
        for name, values in before.layers.items()
    }
    for name, values in e_values.items():
        if not (values >= 0).all():
            raise ValueError(f"an e-value of layer {name} is negative or not a number")
        waiting = layers.get(name)
        if waiting is None or waiting.shape != values.shape:
            waiting = np.full(values.shape, days)
        layers[name] = waiting * np.minimum(values, MAX_E)
    after = AlarmEvidence(layers, before.days + days, before.alarm)
    level = after.level
    if before.alarm and level < limit:
        return AlarmEvidence({name: np.zeros_like(values) for name, values in layers.items()})
    # Taking evidence away at any time keeps the supermartingale.
    shrink = min(1.0, CEILING * limit / level) if level > 0 else 1.0
    return AlarmEvidence({name: values * shrink for name, values in layers.items()}, after.days, level >= limit)


def without(evidence: AlarmEvidence, names: Collection[str]) -> AlarmEvidence:
    """``evidence`` without some of its groups, as those of agents that are gone.

    What is left shrinks by its share of the groups. Else the mean, and with it the level, would rise by leaving out the
    groups that nothing speaks against, and no longer be a supermartingale.
    """
    kept = {name: values for name, values in evidence.layers.items() if name not in names}
    share = len(kept) / max(len(evidence.layers), 1)
    return replace(evidence, layers={name: values * share for name, values in kept.items()})


def channel_e(evidence: AlarmEvidence, e_values: Mapping[str, Floats]) -> dict[str, Floats]:
    """One e-value per channel for the list of channels: half from the newest window, half from all since the start.

    R / days is an e-value at any given time, as is the newest window's, and so is their mean; a strong shift shows in
    the first half at once, a weak one in the second after a while. The parts of a channel are averaged. Layers that
    ``e_values`` lacks are left out.
    """
    days = max(evidence.days, 1e-9)
    mixed: dict[str, Floats] = {}
    for name, newest in e_values.items():
        known = evidence.layers.get(name)
        past = known / days if known is not None and known.shape == newest.shape else np.zeros_like(newest)
        both = (newest + past) / 2
        mixed[name] = both if both.ndim == 1 else both.mean(axis=1)
    return mixed
