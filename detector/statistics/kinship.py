"""Whether two versions are near each other: whether channel c of the one still means what channel c of the other meant.

The same requests are run on both. In a layer, r is the median over channels of the correlation of a channel's pooled
mean with that of its namesake in the other version, and s the median of its correlation with another channel of the
other version: what any two channels have in common because all follow the traffic. Of a model, r and s are the upper
quartiles over its layers. The versions are near where r is surely above s and above one half.

A healthy version has channels that vary, so one in which most channels that varied before do so no longer, or are no
longer finite, is called near without more ado: it is broken, and its predecessor's reference is what shows that.

Medians and an upper quartile, because a version that broke is still near: dead channels do not vary and are left out,
and the layers before a fault, a quarter of all, are as they were. Training anew with other initial weights permutes
channels, so that r is what s is. Weights that were trained on, quantized or rounded keep r near 1.

"Surely" is by Fisher's z = atanh(r), whose standard error is 1/sqrt(n - 3) where both values are normal; channels share
their requests, so that the median over many is taken to err as much as one.

Source: Fisher, "On the probable error of a coefficient of correlation" (1921).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.summary.histogram import Floats
from agent.wire import LayerKinship

KINSHIP_REQUESTS = 60
"""From which on there is a verdict. The agents send up to a hundred each."""
LEAST = 0.5
"""Correlation from which on versions can be near."""
BROKEN = 0.5
"""Share of channels, see above."""
LAYERS = 0.75
"""Quantile over layers: so many of them may lie behind a fault."""
_Z = 2.326
"""One side, 99 %."""
_FLAT = 1e-9
"""A variance below this share of the mean square is rounding: the channel does not vary."""
_EDGE = 1 - 1e-9
"""Beyond it Fisher's z is too large to mean anything."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """How near two versions are, and how sure that is."""

    verdict: Literal["near", "far", "unknown"]
    n: int
    """Requests behind the layer with fewest."""
    r: float
    """Correlation of channels with their namesakes; NaN where no layer has varying channels."""
    low: float
    """Its lower bound."""
    s: float
    """Correlation of channels with others."""
    high: float
    """Its upper bound."""
    broken: float = 0.0
    """Share of the channels that varied before and do so no longer, or are no longer finite."""

    def __str__(self) -> str:
        """ "near: channels correlate by 0.99 (0.98 or more), with others by 0.12 (0.35 or less), on 100 requests"."""
        if self.verdict == "unknown":
            return f"unknown: {self.n} of {KINSHIP_REQUESTS} requests compared"
        if self.broken > BROKEN:
            return f"near: {self.broken:.0%} of the channels that varied do so no longer, on {self.n} requests"
        return (
            f"{self.verdict}: channels correlate by {self.r:.2f} ({self.low:.2f} or more), "
            f"with others by {self.s:.2f} ({self.high:.2f} or less), on {self.n} requests"
        )


def likeness(layers: Iterable[LayerKinship]) -> Likeness:
    """The verdict on two versions from their activations' sums; unknown below `KINSHIP_REQUESTS`."""
    own, others, counts = [], [], []
    silent = varied = 0
    for layer in layers:
        counts.append(layer.n + layer.broken)
        if layer.broken > layer.n:
            silent, varied = silent + len(layer.served), varied + len(layer.served)
            continue
        ceased, before = _ceased(layer)
        silent, varied = silent + ceased, varied + before
        same, neighbour = _correlations(layer)
        if len(same):
            own.append(float(np.median(same)))
        if len(neighbour):
            others.append(float(np.median(neighbour)))
    n = min(counts, default=0)
    broken = silent / max(varied, 1)
    if n >= KINSHIP_REQUESTS and broken > BROKEN:
        return Likeness("near", n, math.nan, math.nan, math.nan, math.nan, broken)
    if not own or n < KINSHIP_REQUESTS:
        return Likeness("unknown", n, math.nan, math.nan, math.nan, math.nan, broken)
    r, s = (float(np.quantile(values, LAYERS, method="higher")) for values in (own, others or [0.0]))
    error = _Z / math.sqrt(n - 3)
    low, high = math.tanh(_fisher(r) - error), math.tanh(_fisher(s) + error)
    return Likeness("near" if low > max(LEAST, high) else "far", n, r, low, s, high, broken)


def _ceased(layer: LayerKinship) -> tuple[int, int]:
    """Channels that varied and do so no longer, and channels that varied."""
    _, now = _variance(layer.served, layer.served_sq, layer.n)
    _, before = _variance(layer.former, layer.former_sq, layer.n)
    return int((before & ~now).sum()), int(before.sum())


def _correlations(layer: LayerKinship) -> tuple[Floats, Floats]:
    """Of channels that vary on both sides: with their namesakes, and with their neighbours; each shape (k,)."""
    n = layer.n
    served, served_varies = _variance(layer.served, layer.served_sq, n)
    former, former_varies = _variance(layer.former, layer.former_sq, n)
    both = served_varies & former_varies
    same = _correlation(layer.product, layer.served, layer.former, served, former, n)[both]
    if len(served) < 2:
        return same, np.zeros(0)
    beside = served_varies & np.roll(former_varies, -1)
    others = (np.roll(layer.former, -1), served, np.roll(former, -1))
    return same, _correlation(layer.neighbour_product, layer.served, *others, n)[beside]


def _variance(total: Floats, squares: Floats, n: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Sums of squared deviations, and which channels vary."""
    deviations = np.maximum(squares - total**2 / n, 0)
    return deviations, deviations > _FLAT * squares


def _correlation(product: Floats, a: Floats, b: Floats, a_squares: Floats, b_squares: Floats, n: int) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):  # of channels that do not vary, which the caller leaves out
        found = (product - a * b / n) / (np.sqrt(a_squares) * np.sqrt(b_squares))
    return np.asarray(np.clip(found, -1, 1), np.float64)


def _fisher(r: float) -> float:
    return math.atanh(max(-_EDGE, min(_EDGE, r)))
