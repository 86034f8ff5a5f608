"""reluscope's own scores of the streams that its peers see: one check per window, as it would run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from agent.replay import Pooled
from agent.summary import Summary, from_pooled
from agent.summary.histogram import Floats, Ints
from detector.dead import dead
from detector.drift import drift
from tests.statistics.peers.exchange import Scores, Streams, timed

SMALLEST = 1e-300


def evidence(reference: Summary, current: Summary, min_effect: float = 0.1) -> Floats:
    """-log10 of the smaller p-value of drift and death, per channel."""
    p = np.minimum(drift(reference, current, min_effect).p_value, dead(reference, current).p_value)
    return np.asarray(-np.log10(np.maximum(p, SMALLEST)), np.float64)


def windows(pooled: Pooled, size: int) -> list[Summary]:
    """Summaries of disjoint windows."""
    return [
        from_pooled(pooled.mean[i : i + size], pooled.maximum[i : i + size], pooled.fraction[i : i + size])
        for i in range(0, len(pooled.mean) - size + 1, size)
    ]


def score_channels(streams: Streams) -> Scores:
    """Streams of one channel: each is a channel of one wide layer, since channels do not see each other."""

    def score(given: Streams) -> tuple[Floats, Ints, float]:
        (before,) = windows(_side_by_side(given.reference), given.reference.shape[1])
        now = windows(_side_by_side(given.requests), given.window)
        values = np.column_stack([evidence(before, window) for window in now])
        return values, np.arange(1, len(now) + 1) * given.window, float("nan")

    return timed(score, streams)


def score_layers(
    references: Sequence[Mapping[str, Pooled]], requests: Sequence[Mapping[str, Pooled]], window: int
) -> Scores:
    """Streams of a whole network: the strongest channel of all layers counts."""

    def score(_: Streams) -> tuple[Floats, Ints, float]:
        rows = []
        for before, now in zip(references, requests, strict=True):
            layers = []
            for name, pooled in now.items():
                (reference,) = windows(before[name], len(before[name].mean))
                layers.append([evidence(reference, part).max() for part in windows(pooled, window)])
            rows.append(np.max(layers, axis=0))
        values = np.array(rows)
        return values, np.arange(1, values.shape[1] + 1) * window, float("nan")

    none = np.zeros((0, 0, 0))
    return timed(score, Streams(none, none, window))


def means(captured: Sequence[Mapping[str, Pooled]]) -> Floats:
    """The pooled means of all probes side by side, shape (streams, requests, channels): what peers are given."""
    return np.stack([np.concatenate([part.mean for part in one.values()], axis=1) for one in captured]).astype(
        np.float64
    )


def _side_by_side(values: Floats) -> Pooled:
    flat = values[:, :, 0].T
    return Pooled(flat, flat, (flat > 0).astype(np.float64))
