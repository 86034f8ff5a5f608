"""Pooled values: one mean, one maximum and one share of positive elements per request and channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pooled:
    """One probe's pooled values for a batch; arrays of shape (requests, channels)."""

    mean: NDArray[np.floating]
    maximum: NDArray[np.floating]
    fraction: NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class PooledOutputs:
    """Names of the added model outputs of one probe, each (requests, channels) float32; of a dense input its own name.

    A dense probe has one output: ``maximum`` equals ``mean`` and ``fraction`` is None.
    """

    mean: str
    maximum: str
    fraction: str | None
    iterations: bool = False
    """Whether the arrays have the iterations of a Loop as a further first axis."""

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs to fetch, without repeats."""
        return tuple(dict.fromkeys(name for name in (self.mean, self.maximum, self.fraction) if name is not None))

    def read(self, values: Mapping[str, NDArray[Any]], requests: int) -> Pooled | None:
        """The pooled values among fetched outputs, by output name.

        None where a batch has none: its rows turned out not to be the requests, or the body of an If or Loop that the
        probe lies in did not run.
        """
        mean, maximum = values[self.mean], values[self.maximum]
        fraction = values[self.fraction] if self.fraction is not None else (mean > 0).astype(np.float32)
        if self.iterations:
            if mean.ndim != 3 or len(mean) == 0:
                return None
            mean, maximum, fraction = mean.mean(axis=0), maximum.max(axis=0), fraction.mean(axis=0)
        if mean.ndim != 2 or len(mean) != requests:
            return None
        return Pooled(mean, maximum, fraction)

    def misfit(self, values: Mapping[str, NDArray[Any]], requests: int) -> str | None:
        """Why `read` has none for the batch; None where it has, or where its body did not run."""
        mean = values[self.mean]
        rows = mean.shape[1:] if self.iterations else mean.shape
        if mean.size == 0 or (len(rows) == 2 and rows[0] == requests):
            return None
        return f"its rows are not the requests: shape {list(rows)} for {requests} requests"
