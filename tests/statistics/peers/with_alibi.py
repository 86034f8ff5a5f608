"""alibi-detect's detectors that need neither PyTorch nor TensorFlow: KSDrift, CVMDriftOnline and FETDriftOnline.

MMDDriftOnline and LSDDDriftOnline raise ImportError without one of the two frameworks and are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from alibi_detect.cd import CVMDriftOnline, FETDriftOnline, KSDrift

from tests.statistics.peers.exchange import EVERY, Floats, Ints, Streams, by_window, serve


class _CramerVonMises(CVMDriftOnline):  # type: ignore[misc]
    """Without its simulated thresholds, for the comparison sets one of its own; they take 4 GB and minutes."""

    def _configure_thresholds(self) -> None:
        self.thresholds = np.full((2 * self.max_ws - 1, 1), np.inf)


class _Fisher(FETDriftOnline):  # type: ignore[misc]
    """Likewise."""

    def _configure_thresholds(self) -> None:
        self.thresholds = np.full((self.t_max, self.n_features), np.inf)


def ks(streams: Streams) -> tuple[Floats, Ints, float]:
    """-log10 of the smallest p-value over channels; as shipped, Bonferroni at .05."""
    detectors = [KSDrift(reference, p_val=0.05) for reference in streams.reference]

    def score(stream: int, window: Floats) -> float:
        smallest = detectors[stream].predict(window)["data"]["p_val"].min()
        return float(-np.log10(max(smallest, 1e-300)))

    values, times = by_window(streams, score)
    return values, times, float(-np.log10(0.05 / streams.reference.shape[2]))


def cvm_online(streams: Streams) -> tuple[Floats, Ints, float]:
    """The normalised Cramér-von Mises statistic of the newest window, sliding by one request."""
    values = np.zeros((len(streams.requests), streams.requests.shape[1] // EVERY))
    for stream, (reference, requests) in enumerate(zip(streams.reference, streams.requests, strict=True)):
        detector = _CramerVonMises(reference, 100, [streams.window], n_bootstraps=1, verbose=False)
        values[stream] = list(_track(detector, requests))
    return values, np.arange(1, values.shape[1] + 1) * EVERY, float("nan")


def fet_online(streams: Streams) -> tuple[Floats, Ints, float]:
    """Fisher's exact test of "active or not" on the newest window, sliding by one request; either direction."""
    values = np.zeros((len(streams.requests), streams.requests.shape[1] // EVERY))
    for stream, (reference, requests) in enumerate(zip(streams.reference > 0, streams.requests > 0, strict=True)):
        # Channels that the reference has always or never active are refused.
        varied = reference.any(axis=0) & ~reference.all(axis=0)
        if not varied.any():
            continue
        for way in ("less", "greater"):
            detector = _Fisher(
                reference[:, varied].astype(int), 100, [streams.window], n_bootstraps=1, alternative=way, verbose=False
            )
            track = list(_track(detector, requests[:, varied].astype(int)))
            values[stream] = np.maximum(values[stream], track)
    return values, np.arange(1, values.shape[1] + 1) * EVERY, float("nan")


def _track(detector: CVMDriftOnline | FETDriftOnline, requests: Floats | Ints) -> Iterator[float]:
    """The largest statistic in every `EVERY` requests, 0 before the window is full."""
    largest = 0.0
    for number, row in enumerate(requests, start=1):
        statistic = np.nan_to_num(detector.predict(row)["data"]["test_stat"], nan=0.0)
        largest = max(largest, float(statistic.max()))
        if number % EVERY == 0:
            yield largest
            largest = 0.0


if __name__ == "__main__":
    serve({"ks": ks, "cvm_online": cvm_online, "fet_online": fet_online})
