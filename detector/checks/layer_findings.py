"""One layer's test results, and the findings that they make: what is told, and with which evidence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.summary import Summary
from agent.summary.histogram import Ints
from agent.wire import Probe
from detector.checks import words
from detector.domain.finding import WORST, ChannelEvidence, Finding, Test
from detector.statistics.correction import Mask
from detector.statistics.dead import Dead
from detector.statistics.drift import PARTS, Drift, normed_wasserstein
from detector.statistics.explosion import Explosion
from detector.statistics.sparsity import Sparsity

SHOWN_RISK = 0.01
"""Chance that the newest windows show a listed channel by themselves where nothing is wrong any more."""


@dataclass(frozen=True, slots=True, eq=False)
class RateVerdict:
    """A rectifier's active rates, judged; arrays have shape (channels,)."""

    rates: Dead
    labels: NDArray[np.str_]
    needed: NDArray[np.float64]
    """Silent requests that would settle a channel's death."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerResult:
    """One probe's test results after the correction for all channels; arrays have shape (channels,)."""

    probe: Probe
    reference: Summary
    current: Summary
    drift: Drift
    drifted: Mask
    explosion: Explosion
    exploded: Mask
    dead: RateVerdict | None
    """None for probes without an exact zero."""
    sparsity: Sparsity | None
    """As above, and where a channel was never finite."""
    left_band: bool
    """Whether the sparsity is to be reported."""

    @property
    def died(self) -> Mask:
        """Channels that are newly dead or dormant."""
        if self.dead is None:
            return np.zeros(len(self.drifted), np.bool_)
        return np.isin(self.dead.labels, ("newly_dead", "dormant"))


def findings_of(layer: LayerResult) -> Iterable[Finding]:
    """What is to be told of a layer, each thing once; without cause, alert and origin, which `policy` knows."""
    found = list(_channel_findings(layer))
    if layer.sparsity is None or not layer.left_band:
        yield from found
    elif not found:
        yield _sparsity_finding(layer, layer.sparsity)
    else:  # What its channels did explains the layer: no second finding on the same thing.
        yield from (_with_sparsity(one, layer.sparsity) if one.test == "drift" else one for one in found)


def _channel_findings(layer: LayerResult) -> Iterable[Finding]:
    if layer.dead is not None and layer.died.any():
        yield _dead_finding(layer, layer.dead)
    if layer.exploded.any():
        yield _explosion_finding(layer)
    # A channel that died has drifted too; it is told once.
    drifted = layer.drifted & ~layer.died
    if drifted.any():
        yield _drift_finding(layer, drifted)


def _dead_finding(layer: LayerResult, verdict: RateVerdict) -> Finding:
    dead, died = verdict.rates, layer.died
    fall = dead.rate_reference - dead.rate
    worst = _worst(died, dead.p_value, fall)
    shown = tuple(
        words.of_dead(layer.probe.name, dead, verdict.labels, verdict.needed, int(channel)) for channel in worst
    )
    first, now = int(worst[0]), _shown_now(died, dead.p_value)
    labels = {name: int((verdict.labels == name).sum()) for name in ("newly_dead", "dormant", "dead_at_reference")}
    return _finding(
        layer,
        "dead",
        died,
        shown,
        summary=words.dead_sentence(layer.probe.name, labels, layer.current.channels, int(dead.n[first]), now),
        details={
            **labels,
            "active_rate": float(dead.rate[first]),
            "active_rate_reference": float(dead.rate_reference[first]),
            "requests_needed": float(verdict.needed[first]),
            "shown_now": now,
        },
    )


def _explosion_finding(layer: LayerResult) -> Finding:
    result = layer.explosion
    worst = _worst(layer.exploded, result.p_value, result.growth)
    shown = tuple(
        words.of_explosion(layer.probe.name, result, layer.reference, layer.current, int(channel)) for channel in worst
    )
    now = _shown_now(layer.exploded, result.p_value)
    return _finding(
        layer,
        "explosion",
        layer.exploded,
        shown,
        summary=words.explosion_sentence(layer.probe.name, result, layer.exploded, now),
        details={
            "growth": shown[0].effect,
            "tail_growth": float(result.tail_growth[worst[0]]),
            "requests_beyond": int(result.exceeding[worst[0]]),
            "channels_grown": int((layer.exploded & result.grown).sum()),
            "nonfinite": int(result.nonfinite[layer.exploded].max()),
            "nonfinite_reference": int(result.nonfinite_reference[layer.exploded].max()),
            "shown_now": now,
        },
    )


def _drift_finding(layer: LayerResult, drifted: Mask) -> Finding:
    result = layer.drift
    worst = _worst(drifted, result.p_value, result.effect)
    distance = normed_wasserstein(layer.reference, layer.current, worst)
    shown = tuple(
        words.of_drift(layer.probe.name, result, layer.reference, layer.current, int(channel), float(far))
        for channel, far in zip(worst, distance, strict=True)
    )
    first, now = int(worst[0]), _shown_now(drifted, result.p_value)
    psi, jensen_shannon = (float(values[0]) for values in result.divergences(worst[:1]))
    return _finding(
        layer,
        "drift",
        drifted,
        shown,
        summary=words.drift_sentence(layer.probe, int(drifted.sum()), result, first, psi, now),
        details={
            "psi": psi,
            "jensen_shannon": jensen_shannon,
            "wasserstein_normed": float(distance[0]),
            "p_parts": dict(zip(PARTS, result.p_parts[first].tolist(), strict=True)),
            "mean": float(layer.current.mean[first]),
            "mean_reference": float(layer.reference.mean[first]),
            "shown_now": now,
        },
    )


def _with_sparsity(finding: Finding, result: Sparsity) -> Finding:
    summary = f"{finding.summary}; {words.sparsity_sentence(result)}"
    return replace(finding, summary=summary, details=finding.details | words.sparsity_details(result))


def _sparsity_finding(layer: LayerResult, result: Sparsity) -> Finding:
    """On the layer as a whole, with all its channels; those that moved most the layer's way are the evidence."""
    shift = result.shift(layer.reference, layer.current)
    moved = np.argsort(-shift, kind="stable")[:WORST]
    shown = tuple(
        words.of_sparsity(
            layer.probe.name, layer.drift, layer.reference, layer.current, int(channel), float(shift[channel])
        )
        for channel in moved
    )
    every = np.ones(layer.current.channels, np.bool_)
    summary = f"{layer.probe.name}: {words.sparsity_sentence(result)}"
    finding = _finding(layer, "sparsity", every, shown, summary, words.sparsity_details(result))
    return replace(
        finding,
        statistic=result.statistic,
        p_value=result.p_value,
        effect=result.effect,
        n=result.n,
        n_reference=result.n_reference,
    )


def _finding(
    layer: LayerResult,
    test: Test,
    channels: Mask,
    shown: tuple[ChannelEvidence, ...],
    summary: str,
    details: dict[str, Any],
) -> Finding:
    """The finding before its cause is known; ``shown[0]`` is the worst channel."""
    worst = shown[0]
    return Finding(
        layer=layer.probe.name,
        kind=layer.probe.kind,
        position=layer.probe.position,
        test=test,
        cause="model_change",
        severity="warning",
        origin=False,
        channels=tuple(int(channel) for channel in np.flatnonzero(channels)),
        channels_total=layer.current.channels,
        statistic=worst.statistic,
        p_value=worst.p_value,
        effect=worst.effect,
        n=worst.n,
        n_reference=worst.n_reference,
        summary=summary,
        alert="",
        evidence=shown,
        details=details,
    )


def _shown_now(listed: Mask, p_value: NDArray[np.float64]) -> bool:
    """Whether the newest windows alone show one of the listed channels, Bonferroni; none is while an alarm ends."""
    return bool(p_value[listed].min() * listed.sum() <= SHOWN_RISK)


def _worst(mask: Mask, p_value: NDArray[np.float64], effect: NDArray[np.float64]) -> Ints:
    """The channels of ``mask`` with the largest effects; equal effects by p-value."""
    channels = np.flatnonzero(mask)
    order = np.lexsort((p_value[channels], -effect[channels]))
    return channels[order[:WORST]].astype(np.int64)
