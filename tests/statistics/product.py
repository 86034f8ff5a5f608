"""reluscope's own scores of the streams that its peers see: single checks, and evidence over time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from agent.replay import Pooled
from agent.summary import Summary, from_pooled, merge
from agent.summary.histogram import Floats
from detector.dead import Dead, dead
from detector.design_effect import estimate
from detector.drift import drift
from detector.sequential import Evidence, advance, calibrate, threshold
from tests.statistics.draws import part
from tests.statistics.peers.exchange import Scores, Streams

SMALLEST = 1e-300
WINDOWS_PER_DAY = 288
"""Of five minutes."""
BUDGET_DAYS = 90.0
UNCAPPED = 1e18
"""A limit that no evidence reaches, so that none is taken away."""
REFERENCE_RISK = 0.1
"""Of channels, for which a frozen reference may err by more than the widened null allows."""


class Watch:
    """Tests against one reference, with everything that its windows tell."""

    def __init__(
        self,
        reference: Summary,
        layers: Sequence[Sequence[Summary]],
        requests: float,
        min_effect: float = 0.1,
        reference_risk: float = REFERENCE_RISK,
    ) -> None:
        """``reference`` holds the channels of all ``layers`` side by side, ``layers`` each one's reference windows.

        ``requests`` is the size of the windows to come; the other two are the drift test's.
        """
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

    def dead(self, current: Summary) -> Dead:
        """Of every channel."""
        return dead(self.reference, current, design_effect=self.design_effect)

    def e_values(self, current: Summary) -> tuple[Floats, Floats]:
        """Of drift and of death, per channel."""
        return calibrate(self.drift(current)), self.dead(current).e_value


def windows(pooled: Pooled, size: int) -> list[Summary]:
    """Summaries of disjoint windows; a remainder is left out."""
    return [
        from_pooled(pooled.mean[i : i + size], pooled.maximum[i : i + size], pooled.fraction[i : i + size])
        for i in range(0, len(pooled.mean) - size + 1, size)
    ]


@dataclass(frozen=True, slots=True)
class Judged:
    """One window's verdicts by layer: p-values for a single check, e-values over time; (families, channels) each."""

    p_values: Mapping[str, Floats]
    e_values: Mapping[str, Floats]


def judge(once: Watch, always: Watch, current: Summary) -> tuple[Floats, Floats]:
    """P- and e-values of drift and death, shape (families, channels) both."""
    p_values = np.stack([once.drift(current), once.dead(current).p_value])
    return p_values, np.stack(always.e_values(current))


def score_channels(streams: Streams, min_effect: float = 0.1) -> tuple[Scores, Scores]:
    """Streams of one channel, by single checks and over time; all at once, since channels do not see each other."""
    begun = time.perf_counter()
    before = windows(_side_by_side(streams.reference), streams.window)
    count = len(streams.requests)
    layers = [[part(window, i, i + 1) for window in before] for i in range(count)]
    whole = reduce(merge, before)
    once, always = (Watch(whole, layers, streams.window, min_effect, risk) for risk in (0.0, REFERENCE_RISK))
    judged = [judge(once, always, window) for window in windows(_side_by_side(streams.requests), streams.window)]
    streams_of = [[Judged({"layer": p[:, [i]]}, {"layer": e[:, [i]]}) for p, e in judged] for i in range(count)]
    return _scores(streams_of, streams.window, time.perf_counter() - begun)


def score_layers(
    references: Sequence[Mapping[str, Pooled]], requests: Sequence[Mapping[str, Pooled]], window: int
) -> tuple[Scores, Scores]:
    """Streams of a whole network, by single checks (the strongest channel of all layers counts) and over time."""
    begun = time.perf_counter()
    tracks = []
    for before, now in zip(references, requests, strict=True):
        found: dict[str, list[tuple[Floats, Floats]]] = {}
        for name, pooled in now.items():
            past = windows(before[name], window)
            whole = reduce(merge, past)
            once, always = (Watch(whole, [past], window, reference_risk=risk) for risk in (0.0, REFERENCE_RISK))
            found[name] = [judge(once, always, current) for current in windows(pooled, window)]
        looks = range(min(len(layer) for layer in found.values()))
        tracks.append([Judged({n: found[n][i][0] for n in found}, {n: found[n][i][1] for n in found}) for i in looks])
    return _scores(tracks, window, time.perf_counter() - begun)


def means(captured: Sequence[Mapping[str, Pooled]]) -> Floats:
    """The pooled means of all probes side by side, shape (streams, requests, channels): what peers are given."""
    return np.stack([np.concatenate([one.mean for one in stream.values()], axis=1) for stream in captured]).astype(
        np.float64
    )


def _scores(tracks: Sequence[Sequence[Judged]], window: int, seconds: float) -> tuple[Scores, Scores]:
    """Of single checks, -log10 of the smallest p-value; over time, log10 of the evidence, in windows."""
    smallest = [[min(float(p.min()) for p in one.p_values.values()) for one in track] for track in tracks]
    single = -np.log10(np.maximum(smallest, SMALLEST))
    times = np.arange(1, single.shape[1] + 1) * window
    levels = np.log10([_over_time(track) for track in tracks])
    shipped = float(np.log10(threshold(BUDGET_DAYS) * WINDOWS_PER_DAY))
    return Scores(single, times, float("nan"), seconds), Scores(levels, times, shipped, seconds)


def _over_time(track: Sequence[Judged]) -> list[float]:
    """The larger of the evidence for drift and for death, after each window."""
    evidence, levels = [Evidence(), Evidence()], []
    for one in track:
        for family in range(len(evidence)):
            e = {name: values[family] for name, values in one.e_values.items()}
            evidence[family] = advance(evidence[family], e, 1.0, UNCAPPED)
        levels.append(max(family.level for family in evidence))
    return levels


def _side_by_side(values: Floats) -> Pooled:
    flat = values[:, :, 0].T
    return Pooled(flat, flat, (flat > 0).astype(np.float64))
