"""reluscope's own scores of the streams that its peers see: single checks, and evidence over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np

from agent.replay import Pooled
from agent.summary import Summary, from_pooled, merge
from agent.summary.histogram import Floats, Ints
from detector.dead import dead
from detector.design_effect import estimate
from detector.drift import drift
from detector.sequential import Evidence, advance, calibrate, threshold
from tests.statistics.draws import part
from tests.statistics.peers.exchange import Scores, Streams, timed

SMALLEST = 1e-300
WINDOWS_PER_DAY = 288
"""Of five minutes."""
BUDGET_DAYS = 90.0
UNCAPPED = 1e18
"""A limit that no evidence reaches, so that none is taken away."""


class Watch:
    """A layer's tests, with everything that its reference's windows tell."""

    def __init__(
        self,
        reference: Summary,
        layers: Sequence[Sequence[Summary]],
        requests: float,
        min_effect: float = 0.1,
        reference_risk: float = 0.0,
    ) -> None:
        """``reference`` holds the channels of all ``layers`` side by side, ``layers`` each one's reference windows."""
        self.reference, self._min_effect, self._risk = reference, min_effect, reference_risk
        effects = [estimate(reduce(merge, windows), windows).at(requests) for windows in layers]
        self.design_effect = np.concatenate(effects)

    def drift(self, current: Summary) -> Floats:
        """P-values per channel."""
        return drift(
            self.reference,
            current,
            self._min_effect,
            design_effect=self.design_effect,
            reference_risk=self._risk,
        ).p_value

    def dead(self, current: Summary) -> Floats:
        """P-values per channel."""
        return dead(self.reference, current).p_value

    def e_values(self, current: Summary) -> Floats:
        """Of drift, per channel."""
        return calibrate(self.drift(current))


def windows(pooled: Pooled, size: int) -> list[Summary]:
    """Summaries of disjoint windows; a remainder is left out."""
    return [
        from_pooled(pooled.mean[i : i + size], pooled.maximum[i : i + size], pooled.fraction[i : i + size])
        for i in range(0, len(pooled.mean) - size + 1, size)
    ]


def score_channels(streams: Streams, min_effect: float = 0.1) -> tuple[Scores, Scores]:
    """Streams of one channel, by single checks and over time; all at once, since channels do not see each other."""
    before = windows(_side_by_side(streams.reference), streams.window)
    count = len(streams.requests)
    layers = [[part(window, i, i + 1) for window in before] for i in range(count)]
    now = windows(_side_by_side(streams.requests), streams.window)

    def p_values(_: Streams) -> tuple[Floats, Ints, float]:
        watch = Watch(reduce(merge, before), layers, streams.window, min_effect)
        found = np.array([[watch.drift(window), watch.dead(window)] for window in now])
        return found, np.arange(1, len(now) + 1) * streams.window, float("nan")

    # Shape (windows, families, streams).
    scored = timed(p_values, streams)
    smallest = np.maximum(scored.values.min(axis=1).T, SMALLEST)
    single = Scores(-np.log10(smallest), scored.times, scored.shipped, scored.seconds)
    levels = [_over_time([{"layer": window[:, [i]]} for window in scored.values]) for i in range(count)]
    return single, Scores(np.array(levels), scored.times, _shipped(), scored.seconds)


def score_layers(
    references: Sequence[Mapping[str, Pooled]], requests: Sequence[Mapping[str, Pooled]], window: int
) -> tuple[Scores, Scores]:
    """Streams of a whole network, by single checks (the strongest channel of all layers counts) and over time."""
    single, levels, seconds = [], [], 0.0
    none = np.zeros((0, 0, 0))
    for before, now in zip(references, requests, strict=True):

        def p_values(
            _: Streams, before: Mapping[str, Pooled] = before, now: Mapping[str, Pooled] = now
        ) -> tuple[Floats, Ints, float]:
            found = []
            for name, pooled in now.items():
                past = windows(before[name], window)
                watch = Watch(reduce(merge, past), [past], window)
                found.append(np.array([[watch.drift(w), watch.dead(w)] for w in windows(pooled, window)]))
            sizes.extend(part.shape[2] for part in found)
            return np.concatenate(found, axis=2), np.zeros(0, np.int64), float("nan")

        sizes: list[int] = []
        scored = timed(p_values, Streams(none, none, window))
        seconds += scored.seconds
        single.append(-np.log10(np.maximum(scored.values.min(axis=(1, 2)), SMALLEST)))
        ends = np.cumsum(sizes)[:-1]
        levels.append(_over_time([dict(zip(now, np.split(one, ends, axis=1), strict=True)) for one in scored.values]))
    times = np.arange(1, len(single[0]) + 1) * window
    return Scores(np.array(single), times, float("nan"), seconds), Scores(np.array(levels), times, _shipped(), seconds)


def means(captured: Sequence[Mapping[str, Pooled]]) -> Floats:
    """The pooled means of all probes side by side, shape (streams, requests, channels): what peers are given."""
    return np.stack([np.concatenate([one.mean for one in stream.values()], axis=1) for stream in captured]).astype(
        np.float64
    )


def _over_time(p_values: Iterable[Mapping[str, Floats]]) -> Floats:
    """log10 of the evidence after each window, in windows: the larger of drift's and death's.

    P-values per window and layer, of shape (families, channels).
    """
    evidence, track = [Evidence(), Evidence()], []
    for layers in p_values:
        for family, one in enumerate(evidence):
            e = {name: calibrate(p[family]) for name, p in layers.items()}
            evidence[family] = advance(one, e, 1.0, UNCAPPED)
        track.append(max(one.level for one in evidence))
    return np.log10(np.array(track))


def _shipped() -> float:
    return float(np.log10(threshold(BUDGET_DAYS) * WINDOWS_PER_DAY))


def _side_by_side(values: Floats) -> Pooled:
    flat = values[:, :, 0].T
    return Pooled(flat, flat, (flat > 0).astype(np.float64))
