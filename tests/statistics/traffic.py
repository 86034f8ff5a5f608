"""Traffic from a population: which requests a window holds, and the summaries and agents' scalars that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.instrument.pooled import Pooled
from agent.summary import Histogram, Summary
from agent.summary.histogram import Ints, bucket_index, from_values
from detector.statistics.fleet import Agents, Scalars
from tests.statistics.populations import Population

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests come, window by window; a window is an hour."""

    requests: int = 240
    """In a window; at noon, where days have a rhythm."""
    session: int = 1
    """Requests of a session; each repeats the session's first with a probability of one half."""
    mood: float = 0.0
    """Standard deviation of the share of the population's second class, from window to window."""
    memory: float = 0.0
    """Correlation of the moods of neighbouring windows."""
    daily: float = 0.0
    """Swing of that share, and of half the number of requests, over a day."""
    block: int = 0
    """Mean requests of a block, all of one of the population's classes, drawn anew for each; 0 for no blocks."""

    def windows(self, population: Population, rng: Rng, start: int = 0) -> _Windows:
        return _Windows(self, population, rng, start)


class _Windows:
    """An endless stream of windows' requests, as numbers into the population."""

    def __init__(self, traffic: Traffic, population: Population, rng: Rng, hour: int) -> None:
        self._traffic, self._rng, self._hour = traffic, rng, hour
        self._classes = [np.flatnonzero(population.classes == one) for one in range(population.classes.max() + 1)]
        self._left, self._one = 0, 0
        self._size, self._mood = population.size, rng.normal()

    def __next__(self) -> Ints:
        traffic, rng = self._traffic, self._rng
        height = np.sin(2 * np.pi * self._hour / 24)
        n = round(traffic.requests * (1 + traffic.daily * height))
        self._hour += 1
        self._mood = traffic.memory * self._mood + np.sqrt(1 - traffic.memory**2) * rng.normal()
        if traffic.block:
            return np.asarray([rng.choice(self._classes[self._customer()]) for _ in range(n)], np.int64)
        if traffic.mood or traffic.daily:
            share = np.clip(0.5 + traffic.mood * self._mood + traffic.daily * height / 2, 0, 1)
            drawn = np.where(rng.random(n) < share, *(rng.choice(one, n) for one in reversed(self._classes[:2])))
        else:
            drawn = rng.integers(self._size, size=n)
        if traffic.session > 1:
            first = np.repeat(drawn[:: traffic.session], traffic.session)[:n]
            drawn = np.where(rng.random(n) < 0.5, first, drawn)
        return np.asarray(drawn, np.int64)

    def _customer(self) -> int:
        """Whose the next request is."""
        if not self._left:
            self._left = int(self._rng.geometric(1 / self._traffic.block))
            self._one = int(self._rng.integers(len(self._classes)))
        self._left -= 1
        return self._one


class Capture:
    """What the agents would send of any choice of a population's requests, without pooling them anew."""

    def __init__(self, population: Population) -> None:
        self._layers = {name: _Layer(pooled) for name, pooled in population.layers.items()}

    def summaries(self, requests: Ints) -> dict[str, Summary]:
        """By layer."""
        return {name: layer.summary(requests) for name, layer in self._layers.items()}

    def agents(self, requests: Ints, count: int) -> Agents:
        """The same by agent, each with an equal share of the requests."""
        parts = np.array_split(requests, count)
        scalars = {name: layer.scalars(parts) for name, layer in self._layers.items()}
        return {f"pod-{i}": {name: of[i] for name, of in scalars.items()} for i in range(count)}


class _Layer:
    def __init__(self, pooled: Pooled) -> None:
        self._mean, self._maximum, self._fraction = (
            np.asarray(one, np.float64) for one in (pooled.mean, pooled.maximum, pooled.fraction)
        )
        self._means = _Buckets(self._mean)
        same = np.array_equal(self._mean, self._maximum)
        self._maxima = self._means if same else _Buckets(self._maximum)

    def summary(self, requests: Ints) -> Summary:
        n, mean, maximum = len(requests), self._mean[requests], self._maximum[requests]
        fraction = self._fraction[requests]
        average = mean.mean(axis=0)
        histogram = self._means.histogram(requests)
        return Summary(
            n=n,
            active=(maximum > 0).sum(axis=0, dtype=np.int64),
            nonfinite=np.zeros(mean.shape[1], np.int64),
            fraction_sum=fraction.sum(axis=0),
            fraction_sq_sum=(fraction**2).sum(axis=0),
            mean=average,
            m2=((mean - average) ** 2).sum(axis=0),
            mean_histogram=histogram,
            max_histogram=histogram if self._maxima is self._means else self._maxima.histogram(requests),
        )

    def scalars(self, parts: Sequence[Ints]) -> list[Scalars]:
        found = []
        for part in parts:
            maximum = self._maximum[part]
            share, mean = float((maximum > 0).mean()), float(self._mean[part].mean())
            found.append(Scalars(len(part), maximum.size, share, mean, float(maximum.max()), 0))
        return found


class _Buckets:
    """The histogram's bucket of every value, so that a window's histogram is a count of small integers."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        whole = from_values(values)
        self._whole, channels = whole, values.shape[1]
        key = _key(whole.channel, whole.sign, whole.index)
        sign = np.where(values > 0, 1, -1)
        index = bucket_index(np.where(values == 0, 1.0, np.abs(values)), whole.scale)
        columns = np.searchsorted(key, _key(np.arange(channels)[None, :], sign, index))
        # Zeros are counted behind all buckets, one place for each channel.
        self._columns = np.where(values == 0, len(key) + np.arange(channels)[None, :], columns)

    def histogram(self, requests: Ints) -> Histogram:
        whole, buckets = self._whole, len(self._whole.channel)
        counted = np.bincount(self._columns[requests].ravel(), minlength=buckets + whole.channels)
        seen = np.flatnonzero(counted[:buckets])
        return Histogram(
            whole.scale,
            counted[buckets:].astype(np.int64),
            whole.channel[seen],
            whole.sign[seen],
            whole.index[seen],
            counted[seen].astype(np.int64),
        )


def _key(channel: Ints, sign: Ints, index: Ints) -> Ints:
    return np.asarray((channel << 34) + sign * (index + (1 << 31)) + (1 << 33), np.int64)


Captured = Mapping[str, Summary]
