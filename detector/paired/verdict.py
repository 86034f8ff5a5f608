"""A paired finding, and the channels that it concerns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agent.summary.histogram import Ints
from agent.wire import Probe
from detector.domain.alerts import alert_for, severity_of
from detector.domain.finding import WORST, Cause, Finding, Test
from detector.domain.types import AgentComparison
from detector.paired import statistics, words
from detector.paired.groups import ComparedGroup


@dataclass(frozen=True, slots=True, eq=False)
class OpenFinding:
    """A finding before its channels are known, and the comparisons that would tell them."""

    finding: Finding
    of: tuple[AgentComparison, ...]


def finding_of(
    probe: Probe,
    test: Test,
    cause: Cause,
    group: ComparedGroup,
    summary: str,
    details: dict[str, Any],
    **numbers: Any,
) -> Finding:
    """A finding on ``probe`` with all its channels; ``numbers`` are the fields that are left."""
    alert = alert_for(test, cause)
    width = probe.channels or 1
    total = group.total
    return Finding(
        layer=probe.name,
        kind=probe.kind,
        position=probe.position,
        test=test,
        cause=cause,
        severity=severity_of(alert),
        channels=tuple(range(width)),
        channels_total=width,
        n_reference=numbers["n"],
        summary=summary,
        alert=alert,
        details={
            "kind": total.kind, "baseline": total.baseline, "baseline_digest": total.baseline_digest,
            "against": words.baseline(total), "provider": total.provider, "agents": list(group.agents), **details,
        },
        **numbers,
    )  # fmt: skip


def with_channels(verdict: OpenFinding, only_served: Ints, only_baseline: Ints, level: float) -> Finding:
    """The finding with the channels whose activity differs between the sides; with all where none stands out.

    A difference of the tensor as a whole, as by a wrong scale, leaves every channel active where it was.
    """
    finding = verdict.finding
    if not len(only_served):
        return finding
    p_values, stand_out = statistics.disagreeing(only_served, only_baseline, level)
    channels = np.flatnonzero(stand_out)
    net = np.abs(only_served - only_baseline)[channels]
    worst = channels[np.lexsort((p_values[channels], -net))][:WORST]
    evidence = tuple(
        words.of_channel(int(c), int(only_served[c]), int(only_baseline[c]), finding.n, float(p_values[c]))
        for c in worst
    )
    whole = tuple(range(len(only_served)))
    return replace(
        finding,
        channels=tuple(int(c) for c in channels) or whole,
        channels_total=len(only_served),
        evidence=evidence,
        details={**finding.details, "channels_disagreeing": len(channels)},
    )
