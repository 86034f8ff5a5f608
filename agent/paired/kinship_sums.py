"""Sums of two versions' pooled means on the same requests, layer by layer. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from agent.wire import KINSHIP_CHANNELS, LayerKinship, merge_layers

Means = Mapping[str, NDArray[np.float64]]
"""By layer: pooled means of shape (requests, channels)."""


def sampled(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of an array (requests, channels) up to `KINSHIP_CHANNELS` channels, evenly spread; a copy."""
    channels = values.shape[1]
    places = np.linspace(0, channels - 1, min(channels, KINSHIP_CHANNELS)).round().astype(np.int64)
    return values[:, places].astype(np.float64)


def layer_sums(name: str, served: NDArray[np.float64], former: NDArray[np.float64]) -> LayerKinship | None:
    """The sums of one layer, both sides of shape (requests, channels); None where no request is finite before."""
    before = np.isfinite(former).all(axis=1)
    both = before & np.isfinite(served).all(axis=1)
    if not before.any():
        return None
    x, y = served[both], former[both]
    return LayerKinship(
        name,
        n=len(x),
        served=x.sum(axis=0),
        former=y.sum(axis=0),
        served_sq=(x * x).sum(axis=0),
        former_sq=(y * y).sum(axis=0),
        product=(x * y).sum(axis=0),
        neighbour_product=(x * np.roll(y, -1, axis=1)).sum(axis=0),
        broken=int((before & ~both).sum()),
    )


class KinshipSums:
    """What has not been sent yet. A layer is handed out only once it has ``least`` requests, so that no one request's
    values can be told from its sums; fewer are kept for the next time."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._open: dict[str, LayerKinship] = {}

    def add(self, served: Means, former: Means) -> None:
        """Adds one batch, at the layers that both sides have with as many channels."""
        for name in served.keys() & former.keys():
            if served[name].shape == former[name].shape and (one := layer_sums(name, served[name], former[name])):
                self._open[name] = merge_layers(self._open[name], one) if name in self._open else one

    def take(self) -> tuple[LayerKinship, ...]:
        """Removes and returns the layers with enough requests, by name."""
        ready = sorted(name for name, one in self._open.items() if self._enough(one))
        return tuple(self._open.pop(name) for name in ready)

    def _enough(self, one: LayerKinship) -> bool:
        """Sums are over the finite requests, so these count; where there are none, the sums are empty."""
        return (one.n or one.broken) >= self._least
