"""What is kept of one agent's layer: a few numbers, whatever the layer's width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agent.summary import Summary


@dataclass(frozen=True, slots=True)
class Scalars:
    """One layer as one agent saw it; a *pair* is a request and a channel."""

    n: int
    """Requests."""
    pairs: int
    """With finite values: what the averages are over."""
    active_share: float
    """Share of pairs with any positive activation; 0 without pairs."""
    mean: float
    """Of the pooled means; 0 without pairs."""
    max: float | None
    """Largest pooled maximum, up to the end of its bucket; None without pairs."""
    nonfinite: int
    """Pairs with a NaN or an infinity."""

    @property
    def requests(self) -> float:
        """Requests behind the averages: all of them, less the share of pairs that is not finite."""
        return self.n * self.pairs / max(self.pairs + self.nonfinite, 1)

    @property
    def lost(self) -> float:
        """Requests that are not finite, were the pairs of each lost together: no fewer can be concerned."""
        return self.n * self.nonfinite / max(self.pairs + self.nonfinite, 1)


Agents = Mapping[str, Mapping[str, Scalars]]
"""By agent, then by layer."""


def of_summary(summary: Summary) -> Scalars:
    """The scalars of one layer's summary."""
    finite = summary.finite
    pairs = int(finite.sum())
    return Scalars(
        n=int(summary.n),
        pairs=pairs,
        active_share=float(summary.active.sum() / max(pairs, 1)),
        mean=float(np.dot(summary.mean, finite) / max(pairs, 1)),
        max=float(summary.highest_max.max()) if pairs else None,
        nonfinite=int(summary.nonfinite.sum()),
    )
