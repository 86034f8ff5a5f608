"""Test results in words: one sentence per channel, one per finding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.summary import Summary
from agent.wire import Probe
from detector.domain.finding import ChannelEvidence
from detector.domain.words import p_text, percent, points
from detector.statistics.dead import Dead
from detector.statistics.drift import PARTS, Drift
from detector.statistics.explosion import Explosion
from detector.statistics.sparsity import Sparsity

EARLIER = "in earlier windows; the newest alone do not show it"
"""Of a finding whose alarm still stands on evidence of the past."""


def of_dead(
    layer: str, dead: Dead, labels: NDArray[np.str_], needed: NDArray[np.float64], channel: int
) -> ChannelEvidence:
    """A channel that died or nearly did."""
    k, n, n0 = int(dead.active[channel]), int(dead.n[channel]), int(dead.n_reference[channel])
    before = float(dead.rate_reference[channel])
    text = f"channel {channel} of {layer}: active in {k:,} of {n:,} requests; reference {percent(before)} of {n0:,}"
    if np.isfinite(needed[channel]):
        text += f"; needed {int(needed[channel]):,} to be sure"
    return ChannelEvidence(
        channel=channel,
        label=str(labels[channel]),
        statistic=float(k),
        p_value=float(dead.p_value[channel]),
        effect=before - float(dead.rate[channel]),
        n=n,
        n_reference=n0,
        text=text,
    )


def of_drift(
    layer: str, drift: Drift, reference: Summary, current: Summary, channel: int, distance: float
) -> ChannelEvidence:
    """A channel that drifted; ``distance`` is its normed Wasserstein-1."""
    effect, p = float(drift.effect[channel]), float(drift.p_value[channel])
    part, psi = PARTS[drift.part[channel]], float(drift.divergences(np.array([channel]))[0][0])
    text = (
        f"channel {channel} of {layer}: {part} shifted by {_size(drift, channel)}; mean {current.mean[channel]:.4g}, "
        f"reference {reference.mean[channel]:.4g}; PSI {psi:.2f}, "
        f"Wasserstein {distance:.2f} standard deviations; {p_text(p)}"
    )
    return ChannelEvidence(
        channel=channel,
        label="drifted",
        statistic=float(drift.statistic[channel]),
        p_value=p,
        effect=effect,
        n=int(drift.n[channel]),
        n_reference=int(drift.n_reference[channel]),
        text=text,
    )


def of_explosion(
    layer: str, explosion: Explosion, reference: Summary, current: Summary, channel: int
) -> ChannelEvidence:
    """A channel that exploded or stopped being finite."""
    growth, beyond = float(explosion.growth[channel]), int(explosion.exceeding[channel])
    lost, n = int(explosion.nonfinite[channel]), int(explosion.n[channel])
    text = f"channel {channel} of {layer}: "
    if np.isfinite(current.max[channel]) and np.isfinite(reference.max[channel]):
        text += f"maximum {current.max[channel]:.4g}, reference {reference.max[channel]:.4g}; "
    if explosion.tail_exceeding[channel] > beyond:
        grown = float(explosion.tail_growth[channel])
        beyond = int(explosion.tail_exceeding[channel])
        text += f"99 % quantile {grown:.3g} times the reference's; "
    text += (
        f"{beyond:,} of {n:,} requests beyond the limit, {lost} not finite; {p_text(float(explosion.p_value[channel]))}"
    )
    return ChannelEvidence(
        channel=channel,
        label="exploded",
        statistic=float(max(beyond, lost)),
        p_value=float(explosion.p_value[channel]),
        effect=growth,
        n=n,
        n_reference=int(explosion.n_reference[channel]),
        text=text,
    )


def of_sparsity(
    layer: str, drift: Drift, reference: Summary, current: Summary, channel: int, shift: float
) -> ChannelEvidence:
    """A channel of a layer whose sparsity left its band; ``shift`` is the channel's, in its standard deviations."""
    now, before = (
        1 - float(side.fraction_sum[channel]) / max(int(side.finite[channel]), 1) for side in (current, reference)
    )
    return ChannelEvidence(
        channel=channel,
        label="sparser" if now > before else "denser",
        statistic=now - before,
        p_value=float(drift.p_value[channel]),
        effect=shift,
        n=int(drift.n[channel]),
        n_reference=int(drift.n_reference[channel]),
        text=f"channel {channel} of {layer}: {percent(now)} zero, reference {percent(before)}",
    )


def sparsity_sentence(zeros: Sparsity) -> str:
    """What a layer's sparsity is, and what it may be."""
    band = f"the band of the reference is {points(zeros.low)} to {points(zeros.high)} %"
    text = f"{points(zeros.value)} % zero in {zeros.n:,} requests; {band}"
    return text if zeros.outside else f"{text}, which earlier windows left"


def sparsity_details(zeros: Sparsity) -> dict[str, float]:
    """The same as numbers, shares from 0 to 1."""
    return {
        "sparsity": zeros.value,
        "sparsity_reference": zeros.reference,
        "sparsity_low": zeros.low,
        "sparsity_high": zeros.high,
    }


def dead_sentence(layer: str, labels: dict[str, int], channels: int, n: int, shown: bool) -> str:
    """Of a dead finding; ``shown`` is whether the newest windows alone show it."""
    parts = []
    if labels["newly_dead"]:
        parts.append(f"{labels['newly_dead']} died")
    if labels["dormant"]:
        parts.append(f"{labels['dormant']} nearly died")
    time = f"in the last {n} requests" if shown else EARLIER
    text = f"{layer}: of {channels} channels {' and '.join(parts)} {time}"
    if labels["dead_at_reference"]:
        text += f"; {labels['dead_at_reference']} were dead before"
    return text


def drift_sentence(probe: Probe, drifted: int, drift: Drift, worst: int, psi: float, shown: bool) -> str:
    """Of a drift finding; ``shown`` is whether the newest windows alone show it."""
    what = {"input": "input ", "output": "output "}.get(probe.kind, "")
    text = f"{what}{probe.name}: {drifted} of {len(drift.effect)} channels drifted"
    return f"{text}, the worst by {_size(drift, worst)} (PSI {psi:.2f})" if shown else f"{text} {EARLIER}"


def _size(drift: Drift, channel: int) -> str:
    """A channel's effect in the unit of the part that decides."""
    effect, part = float(drift.effect[channel]), PARTS[drift.part[channel]]
    return f"omega {effect:.2f}" if part in ("share of zeros", "values") else f"{effect:.2f} standard deviations"


def explosion_sentence(layer: str, result: Explosion, exploded: NDArray[np.bool_], shown: bool) -> str:
    """Of an explosion finding on the channels ``exploded``; ``shown`` is whether the newest windows alone show it.

    Growth is told of channels with requests beyond the limit only: one that is not finite may not have grown at all.
    """
    channels = len(exploded)
    if not shown:
        return f"{layer}: {int(exploded.sum())} of {channels} channels exploded {EARLIER}"
    grown, lost = exploded & result.grown, exploded & (result.nonfinite > 0)
    parts = []
    if grown.any():
        beyond = bool(result.exceeding[grown].any())
        growth, what = (result.growth, "maximum") if beyond else (result.tail_growth, "99 % quantile")
        worst = f"the worst to {growth[grown].max():.3g} times the reference's {what}"
        parts.append(f"{int(grown.sum())} of {channels} channels exploded, {worst}")
    if lost.any():
        requests = int(result.nonfinite[lost].max())
        parts.append(f"{int(lost.sum())} of {channels} channels are not finite in up to {requests} requests")
    return f"{layer}: {'; '.join(parts)}"
