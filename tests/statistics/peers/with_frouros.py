"""frouros: CUSUM in both directions on every request, PSI on windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from frouros.detectors.concept_drift import CUSUM, CUSUMConfig
from frouros.detectors.data_drift import PSI

from tests.statistics.peers.exchange import Floats, Ints, Streams, by_request, by_window, serve

TOLERATED = 0.1
"""CUSUM's delta, in reference standard deviations: as for reluscope, what does not matter."""


def cusum(streams: Streams) -> tuple[Floats, Ints, float]:
    """The larger of the sums of values and of negated values; frouros' CUSUM sees rises only."""
    reference, requests = streams.standardised()

    def start(stream: int, channel: int) -> Callable[[float], float]:
        # The largest finite threshold: above it a detector would stop to count.
        config = CUSUMConfig(delta=TOLERATED, lambda_=1e300)
        rise, fall = CUSUM(config=config), CUSUM(config=config)

        def step(value: float) -> float:
            rise.update(value=value)
            fall.update(value=-value)
            return float(max(rise.sum_, fall.sum_))

        for value in reference[stream, :, channel].tolist():
            step(value)
        return step

    values, times = by_request(requests, start)
    return values, times, 50.0


def psi(streams: Streams) -> tuple[Floats, Ints, float]:
    """The largest PSI over channels, ten bins; .2 is the customary threshold."""
    channels = streams.reference.shape[2]
    detectors = [[PSI(num_bins=10) for _ in range(channels)] for _ in streams.reference]
    for row, reference in zip(detectors, streams.reference, strict=True):
        for channel, detector in enumerate(row):
            detector.fit(X=reference[:, channel])

    def score(stream: int, window: Floats) -> float:
        # A channel that is constant in both makes frouros divide zero by zero.
        found = [one.compare(X=window[:, channel])[0].distance for channel, one in enumerate(detectors[stream])]
        return float(np.nan_to_num(found, nan=0.0).max())

    values, times = by_window(streams, score)
    return values, times, 0.2


if __name__ == "__main__":
    serve({"cusum": cusum, "psi": psi})
