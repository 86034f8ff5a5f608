"""river's ADWIN and Page-Hinkley, fed one request at a time: the reference first, then the stream."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from river.drift import ADWIN, PageHinkley

from tests.statistics.peers.exchange import Floats, Ints, Streams, by_request, serve

DEFAULT = 0.002
DELTAS = (0.05, 0.01, DEFAULT, 5e-4, 1e-4, 2e-5, 4e-6, 8e-7, 1e-7, 1e-9)
"""ADWIN has no statistic that a threshold is put on, so it runs at each of these."""
TOLERATED = 0.1
"""Page-Hinkley's delta, in reference standard deviations: as for reluscope, what does not matter."""


def adwin(streams: Streams, deltas: tuple[float, ...] = DELTAS) -> tuple[Floats, Ints, float]:
    """The number of ``deltas`` at which it has alarmed."""
    reference, requests = streams.standardised()
    total: Floats | None = None
    for delta in deltas:

        def start(stream: int, channel: int, delta: float = delta) -> Callable[[float], float]:
            detector = ADWIN(delta=delta)
            for value in reference[stream, :, channel].tolist():
                detector.update(value)

            def step(value: float) -> float:
                detector.update(value)
                return float(detector.drift_detected)

            return step

        alarms, times = by_request(requests, start)
        fired = np.maximum.accumulate(alarms, axis=1)
        total = fired if total is None else total + fired
    assert total is not None
    return total, times, float(deltas.index(DEFAULT) + 1)


def adwin_as_shipped(streams: Streams) -> tuple[Floats, Ints, float]:
    """At the default alone, for the cost."""
    return adwin(streams, (DEFAULT,))


def page_hinkley(streams: Streams) -> tuple[Floats, Ints, float]:
    """Its cumulative sum above the minimum or below the maximum, whichever is larger."""
    reference, requests = streams.standardised()

    def start(stream: int, channel: int) -> Callable[[float], float]:
        detector = PageHinkley(delta=TOLERATED, threshold=float("inf"))
        for value in reference[stream, :, channel].tolist():
            detector.update(value)

        def step(value: float) -> float:
            detector.update(value)
            rise = detector._sum_increase - detector._min_increase
            return float(max(rise, detector._max_decrease - detector._sum_decrease))

        return step

    values, times = by_request(requests, start)
    return values, times, 50.0


if __name__ == "__main__":
    serve({"adwin": adwin, "adwin_as_shipped": adwin_as_shipped, "page_hinkley": page_hinkley})
