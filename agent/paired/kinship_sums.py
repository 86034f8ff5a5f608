"""Sums of two versions' pooled means on the same requests, layer by layer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.summary.coarse import middles
from agent.wire import KINSHIP_CHANNELS, LayerKinship, merge_layers

Means = Mapping[str, NDArray[np.float64]]
"""By layer: pooled means of shape (requests, channels)."""


def sampled(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of an array (requests, channels) up to `KINSHIP_CHANNELS` channels, evenly spread; a copy."""
    channels = values.shape[1]
    places = np.linspace(0, channels - 1, min(channels, KINSHIP_CHANNELS)).round().astype(np.int64)
    return values[:, places].astype(np.float64)


@dataclass(frozen=True, slots=True)
class _Open:
    """A layer's sums that have not been sent yet, and on how many requests' values each rests."""

    exact: LayerKinship
    coarse: LayerKinship
    """The same of values at the middle of their histogram's bucket."""
    served: NDArray[np.int64]
    """Requests with a value other than zero, of the same shape as the sums."""
    former: NDArray[np.int64]
    product: NDArray[np.int64]
    neighbour_product: NDArray[np.int64]

    def __add__(self, other: _Open) -> _Open:
        return _Open(
            merge_layers(self.exact, other.exact),
            merge_layers(self.coarse, other.coarse),
            self.served + other.served,
            self.former + other.former,
            self.product + other.product,
            self.neighbour_product + other.neighbour_product,
        )

    def told(self, least: int) -> LayerKinship:
        """The sums, each exact only where at least ``least`` requests stand behind it.

        Of a channel that is zero but for one request a sum is that request's value, and of its bucket else.
        """

        def chosen(name: str, requests: NDArray[np.int64]) -> NDArray[np.float64]:
            told: NDArray[np.float64] = np.where(
                requests >= least, getattr(self.exact, name), getattr(self.coarse, name)
            )
            return told

        served_sq, former_sq = chosen("served_sq", self.served), chosen("former_sq", self.former)
        # Products of middles may be larger than exact squares allow.
        most, most_beside = (np.sqrt(served_sq) * np.sqrt(other) for other in (former_sq, np.roll(former_sq, -1)))
        return replace(
            self.exact,
            served=chosen("served", self.served),
            former=chosen("former", self.former),
            served_sq=served_sq,
            former_sq=former_sq,
            product=chosen("product", self.product).clip(-most, most),
            neighbour_product=chosen("neighbour_product", self.neighbour_product).clip(-most_beside, most_beside),
        )


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


def _opened(name: str, served: NDArray[np.float64], former: NDArray[np.float64]) -> _Open | None:
    """One batch's sums, as in `layer_sums`."""
    exact, coarse = layer_sums(name, served, former), layer_sums(name, middles(served), middles(former))
    if exact is None or coarse is None:
        return None
    both = np.isfinite(former).all(axis=1) & np.isfinite(served).all(axis=1)
    x, y = served[both] != 0, former[both] != 0
    pairs = (x, y, x & y, x & np.roll(y, -1, axis=1))
    return _Open(exact, coarse, *(one.sum(axis=0, dtype=np.int64) for one in pairs))


class KinshipSums:
    """What has not been sent yet. A layer is handed out only once it has ``least`` requests, so that no one request's
    values can be told from its sums; fewer are kept for the next time."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._open: dict[str, _Open] = {}

    def add(self, served: Means, former: Means) -> None:
        """Adds one batch, at the layers that both sides have with as many channels."""
        for name in served.keys() & former.keys():
            if served[name].shape == former[name].shape and (one := _opened(name, served[name], former[name])):
                self._open[name] = self._open[name] + one if name in self._open else one

    def take(self) -> tuple[LayerKinship, ...]:
        """Removes and returns the layers with enough requests, by name."""
        ready = sorted(name for name, one in self._open.items() if self._enough(one.exact))
        return tuple(self._open.pop(name).told(self._least) for name in ready)

    def _enough(self, one: LayerKinship) -> bool:
        """Sums are over the finite requests, so these count; where there are none, the sums are empty."""
        return (one.n or one.broken) >= self._least
