"""A fleet's evidence over time: one group per agent, one process per layer and scalar, in graph order.

Agents come and go. One that a batch lacks gets the e-value of p = 1, so its evidence halves with every batch, and an
alarm ends soon after an odd pod was drained. Those that are gone for good are dropped by
`detector.statistics.sequential.without`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.summary.histogram import Floats
from detector.statistics.fleet.deviation import Fleet
from detector.statistics.sequential import IDLE, AlarmEvidence, calibrate

LARGEST_E = 25.0
"""Of one batch: further out than p = 4e-4 the normal law is not trusted for the mean of few requests with heavy tails
or rare exceptions, for an agent keeps no variance of its own that would grow with them. So no single batch raises an
alarm."""


def fitted(before: AlarmEvidence, fleet: Fleet | None) -> AlarmEvidence:
    """``before``, with agents begun anew whose processes are not those of ``fleet``: the model has other probes now."""
    if fleet is None:
        return before
    width = len(fleet.probes) * fleet.p_values.shape[2]
    return replace(
        before, layers={name: r if len(r) == width else np.zeros(width) for name, r in before.layers.items()}
    )


def e_values(before: AlarmEvidence, fleet: Fleet | None) -> dict[str, Floats]:
    """By agent, of those in the batch and those with evidence alone; shape (layers * scalars,)."""
    absent = {name: np.full(len(r), IDLE) for name, r in before.layers.items()}
    if fleet is None:
        return absent
    present = calibrate(fleet.p_values, LARGEST_E).reshape(len(fleet.agents), -1)
    return absent | dict(zip(fleet.agents, present, strict=True))
