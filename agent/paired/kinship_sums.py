"""Sums of two versions' pooled means on the same requests, layer by layer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.summary.coarse import are_many, middles
from agent.wire import KINSHIP_CHANNELS, LayerKinship, merge_layers

Means = Mapping[str, NDArray[np.float64]]
"""By layer: pooled means of shape (requests, channels)."""


def sampled(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of an array (requests, channels) up to `KINSHIP_CHANNELS` channels, evenly spread; a copy."""
    channels = values.shape[1]
    places = np.linspace(0, channels - 1, min(channels, KINSHIP_CHANNELS)).round().astype(np.int64)
    return values[:, places].astype(np.float64)


@dataclass(frozen=True, slots=True)
class _Spread:
    """How numbers, one of each request, are spread over the requests; all of the sums' shape."""

    requests: NDArray[np.int64]
    """With a number other than zero."""
    squares: NDArray[np.float64]
    fourths: NDArray[np.float64]

    @staticmethod
    def of(values: NDArray[np.float64]) -> _Spread:
        """Of values (requests, channels)."""
        squares = values * values
        return _Spread((values != 0).sum(axis=0, dtype=np.int64), squares.sum(axis=0), (squares * squares).sum(axis=0))

    def __add__(self, other: _Spread) -> _Spread:
        return _Spread(self.requests + other.requests, self.squares + other.squares, self.fourths + other.fourths)

    def are_many(self, least: int) -> NDArray[np.bool_]:
        return are_many(self.squares, self.requests, self.fourths, least)


@dataclass(frozen=True, slots=True)
class _Open:
    """A layer's sums that have not been sent yet, and how what they rest on is spread over the requests."""

    exact: LayerKinship
    coarse: LayerKinship
    """The same of values at the middle of their histogram's bucket."""
    served: _Spread
    former: _Spread
    differing: _Spread
    product: _Spread
    neighbour_product: _Spread

    def __add__(self, other: _Open) -> _Open:
        return _Open(
            merge_layers(self.exact, other.exact),
            merge_layers(self.coarse, other.coarse),
            self.served + other.served,
            self.former + other.former,
            self.differing + other.differing,
            self.product + other.product,
            self.neighbour_product + other.neighbour_product,
        )

    def told(self, least: int) -> LayerKinship:
        """The sums, each exact only where at least ``least`` requests stand behind it, and no one or two outweigh them.

        Of a channel that is zero but for one request a sum is that request's value, and of its bucket else. Where the
        versions differ at one request only, the difference of their sums is that request's: so one side is coarse.
        """
        apart = self.differing.are_many(least)

        def chosen(name: str, exact: NDArray[np.bool_]) -> NDArray[np.float64]:
            told: NDArray[np.float64] = np.where(exact, getattr(self.exact, name), getattr(self.coarse, name))
            return told

        served, former = self.served.are_many(least) & apart, self.former.are_many(least)
        served_sq, former_sq = chosen("served_sq", served), chosen("former_sq", former)
        # Products of middles may be larger than exact squares allow.
        most, most_beside = (np.sqrt(served_sq) * np.sqrt(other) for other in (former_sq, np.roll(former_sq, -1)))
        product, beside = (one.are_many(least) & apart for one in (self.product, self.neighbour_product))
        return replace(
            self.exact,
            served=chosen("served", served),
            former=chosen("former", former),
            served_sq=served_sq,
            former_sq=former_sq,
            product=chosen("product", product).clip(-most, most),
            neighbour_product=chosen("neighbour_product", beside).clip(-most_beside, most_beside),
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
    x, y = served[both], former[both]
    with np.errstate(over="ignore"):  # an infinite sum of squares does not count as many
        return _Open(exact, coarse, *(_Spread.of(one) for one in (x, y, x - y, x * y, x * np.roll(y, -1, axis=1))))


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
