"""What goes to a peer and comes back: numpy files, because each peer runs in an interpreter of its own.

Imported by those interpreters too, so numpy and the standard library only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
EVERY = 10
"""Requests between two looks at an online detector's statistic."""


@dataclass(frozen=True, slots=True)
class Streams:
    """Requests in order of time, after a healthy reference; one value per request and channel."""

    reference: Floats
    """Shape (streams, reference requests, channels)."""
    requests: Floats
    """Shape (streams, requests, channels)."""
    window: int
    """Requests per window, for detectors that compare windows."""

    def standardised(self) -> tuple[Floats, Floats]:
        """Both in the reference's means and standard deviations, per stream and channel."""
        mean = self.reference.mean(axis=1, keepdims=True)
        deviation = self.reference.std(axis=1, keepdims=True)
        unit = np.where(deviation > 0, deviation, 1.0)
        return (self.reference - mean) / unit, (self.requests - mean) / unit

    def first(self, streams: int) -> Streams:
        """At most so many streams."""
        return Streams(self.reference[:streams], self.requests[:streams], self.window)


@dataclass(frozen=True, slots=True)
class Scores:
    """A detector's evidence over time: an alarm at threshold t is the first score of at least t."""

    values: Floats
    """Shape (streams, looks)."""
    times: Ints
    """Requests seen at each look, shape (looks,)."""
    shipped: float
    """The threshold that the detector's defaults amount to."""
    seconds: float


def joined(parts: Sequence[Streams]) -> Streams:
    """All streams of all parts, in order."""
    references, requests = ([getattr(part, name) for part in parts] for name in ("reference", "requests"))
    return Streams(np.concatenate(references), np.concatenate(requests), parts[0].window)


Score = Callable[[Streams], tuple[Floats, Ints, float]]
"""Scores of streams: values, times and shipped threshold."""


def by_window(streams: Streams, score: Callable[[int, Floats], float]) -> tuple[Floats, Ints]:
    """Scores of disjoint windows; ``score`` takes a stream's number and a window (requests, channels)."""
    count, total, _ = streams.requests.shape
    looks = total // streams.window
    values = np.zeros((count, looks))
    for stream in range(count):
        for look in range(looks):
            part = streams.requests[stream, look * streams.window : (look + 1) * streams.window]
            values[stream, look] = score(stream, part)
    return values, np.arange(1, looks + 1) * streams.window


def by_request(requests: Floats, update: Callable[[int, int], Callable[[float], float]]) -> tuple[Floats, Ints]:
    """Scores of online detectors, one for each channel; the largest since the last look counts.

    ``update`` takes the numbers of a stream and a channel and hands back what takes a value to the detector's score.
    """
    count, total, channels = requests.shape
    looks = total // EVERY
    values = np.full((count, looks), -np.inf)
    for stream in range(count):
        for channel in range(channels):
            step = update(stream, channel)
            track = np.array([step(value) for value in requests[stream, : looks * EVERY, channel].tolist()])
            values[stream] = np.maximum(values[stream], track.reshape(looks, EVERY).max(axis=1))
    return values, np.arange(1, looks + 1) * EVERY


def write_streams(path: Path, streams: Streams) -> None:
    np.savez(path, reference=streams.reference, requests=streams.requests, window=streams.window)


def read_scores(path: Path) -> Scores:
    with np.load(path) as file:
        return Scores(file["values"], file["times"], float(file["shipped"]), float(file["seconds"]))


def timed(score: Score, streams: Streams) -> Scores:
    """Runs a detector against the clock."""
    begun = time.perf_counter()
    values, times, shipped = score(streams)
    return Scores(values, times, shipped, time.perf_counter() - begun)


def serve(detectors: Mapping[str, Score]) -> None:
    """The whole of a peer's program: ``<detector> <streams.npz> <scores.npz>``."""
    name, source, target = sys.argv[1:]
    with np.load(source) as file:
        streams = Streams(file["reference"], file["requests"], int(file["window"]))
    result = timed(detectors[name], streams)
    np.savez(target, values=result.values, times=result.times, shipped=result.shipped, seconds=result.seconds)
