"""reluscope's own scores of the streams that its peers see: single checks, and evidence over time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike

from agent.instrument.pooled import Pooled
from agent.summary import Summary, from_pooled, merge
from agent.summary.histogram import Floats
from agent.wire import Probe
from detector.checks.examine import measure
from detector.domain.settings import CheckSettings
from detector.statistics.dead import Dead, dead
from detector.statistics.design_effect import estimate
from detector.statistics.drift import Drift, drift
from detector.statistics.explosion import Explosion, explosion
from detector.statistics.reference_error import REFERENCE_RISK
from detector.statistics.sequential import FAMILIES, AlarmEvidence, advance, calibrate, threshold
from tests.statistics.draws import part
from tests.statistics.peers.exchange import Scores, Streams

SMALLEST = 1e-300
WINDOWS_PER_DAY = 288
"""Of five minutes."""
BUDGET_DAYS = 90.0
EXPLOSION_FACTOR = 2.0
"""Less than is shipped: by ten times the reference's maximum hardly anything ever grows by chance."""
UNCAPPED = 1e18
"""A limit that no evidence reaches, so that none is taken away."""


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

    def drift(self, current: Summary) -> Drift:
        """Of every channel."""
        return drift(
            self.reference,
            current,
            self._min_effect,
            design_effect=self.design_effect,
            reference_risk=self._risk,
        )

    def dead(self, current: Summary) -> Dead:
        """Of every channel."""
        return dead(self.reference, current, design_effect=self.design_effect)

    def explosion(self, current: Summary) -> Explosion:
        """Of every channel, by `EXPLOSION_FACTOR`."""
        return explosion(
            self.reference,
            current,
            EXPLOSION_FACTOR,
            design_effect=self.design_effect,
            reference_risk=self._risk,
        )

    def e_values(self, current: Summary, family: str = "drift") -> Floats:
        """Of drift, shape (channels, parts), of death or of explosion, shape (channels,)."""
        if family == "dead":
            return self.dead(current).e_value
        return calibrate(self.drift(current).p_parts if family == "drift" else self.explosion(current).p_value)


def windows(pooled: Pooled, size: int) -> list[Summary]:
    """Summaries of disjoint windows; a remainder is left out."""
    return [
        from_pooled(pooled.mean[i : i + size], pooled.maximum[i : i + size], pooled.fraction[i : i + size])
        for i in range(0, len(pooled.mean) - size + 1, size)
    ]


def score_channels(streams: Streams, min_effect: float = 0.1) -> tuple[Scores, Scores]:
    """Streams of one channel, by single checks and over time; all at once, since channels do not see each other."""
    begun = time.perf_counter()
    before = windows(_side_by_side(streams.reference), streams.window)
    count = len(streams.requests)
    layers = [[part(window, i, i + 1) for window in before] for i in range(count)]
    watch = Watch(reduce(merge, before), layers, streams.window, min_effect)
    evidence = [[AlarmEvidence() for _ in range(count)] for _ in ("drift", "dead")]
    singles, levels = [], []
    for current in windows(_side_by_side(streams.requests), streams.window):
        drifted, death = watch.drift(current), watch.dead(current)
        singles.append(np.minimum(drifted.p_value, death.p_value))
        for family, e in zip(evidence, (calibrate(drifted.p_parts), death.e_value), strict=True):
            for i in range(count):
                family[i] = advance(family[i], {"layer": e[i : i + 1]}, 1.0, UNCAPPED)
        levels.append([max(one.level, other.level) for one, other in zip(*evidence, strict=True)])
    seconds = time.perf_counter() - begun
    return _scores(np.transpose(singles), np.transpose(levels), streams.window, seconds)


def score_layers(
    probes: Sequence[Probe],
    references: Sequence[Mapping[str, Pooled]],
    requests: Sequence[Mapping[str, Pooled]],
    window: int,
    min_effect: float = 0.1,
) -> tuple[Scores, Scores]:
    """Streams of a whole network, by single checks (the strongest channel of all layers counts) and over time."""
    begun, settings = time.perf_counter(), CheckSettings(min_effect=min_effect)
    singles, levels = [], []
    for before, now in zip(references, requests, strict=True):
        past = {name: windows(pooled, window) for name, pooled in before.items()}
        whole = {name: reduce(merge, parts) for name, parts in past.items()}
        effects = {name: estimate(whole[name], parts) for name, parts in past.items()}
        evidence: Mapping[str, AlarmEvidence] = {}
        single, level = [], []
        for parts in zip(*(windows(pooled, window) for pooled in now.values()), strict=True):
            measured = measure(probes, whole, dict(zip(now, parts, strict=True)), settings, effects, window)
            p_values = [one.p_value for one in measured.drifts.values()]
            p_values += [one.p_value for one in measured.deaths.values()]
            single.append(float(np.concatenate(p_values).min()))
            e = {family: measured.e_values(family) for family in FAMILIES}
            evidence = {f: advance(evidence.get(f, AlarmEvidence()), e[f], 1.0, UNCAPPED) for f in FAMILIES}
            level.append(max(one.level for one in evidence.values()))
        singles.append(single)
        levels.append(level)
    return _scores(singles, levels, window, time.perf_counter() - begun)


def means(captured: Sequence[Mapping[str, Pooled]]) -> Floats:
    """The pooled means of all probes side by side, shape (streams, requests, channels): what peers are given."""
    return np.stack([np.concatenate([one.mean for one in stream.values()], axis=1) for stream in captured]).astype(
        np.float64
    )


def _scores(p_values: ArrayLike, levels: ArrayLike, window: int, seconds: float) -> tuple[Scores, Scores]:
    """Of single checks, -log10 of the p-value; over time, log10 of the evidence, in windows. Shape (streams, looks)."""
    single = np.asarray(-np.log10(np.maximum(p_values, SMALLEST)), np.float64)
    times = np.arange(1, single.shape[1] + 1) * window
    shipped = float(np.log10(threshold(BUDGET_DAYS) * WINDOWS_PER_DAY))
    over_time = np.asarray(np.log10(np.maximum(levels, SMALLEST)), np.float64)
    return Scores(single, times, float("nan"), seconds), Scores(over_time, times, shipped, seconds)


def _side_by_side(values: Floats) -> Pooled:
    flat = values[:, :, 0].T
    return Pooled(flat, flat, (flat > 0).astype(np.float64))
