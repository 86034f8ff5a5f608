"""From odd agents to findings: which pod, at which layer first, how far, and whether its inputs are odd too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detector.checks import fleet_words as words
from detector.domain.alerts import alert_for, severity_of
from detector.domain.finding import WHOLE_LAYER, WORST, Cause, ChannelEvidence, Finding
from detector.statistics.correction import Mask, benjamini_hochberg
from detector.statistics.fleet.deviation import NONFINITE, SCALARS, Fleet


@dataclass(frozen=True, slots=True)
class _Odd:
    """One odd agent; numbers are indices into the fleet's arrays."""

    agent: int
    layer: int
    """The first odd one in graph order."""
    scalar: int
    """Of that layer: the one that is farthest out."""
    layers: tuple[int, ...]
    """All odd ones."""
    inputs_odd: bool

    @property
    def cause(self) -> Cause:
        """Other traffic, or the same traffic computed otherwise."""
        return "input_shift" if self.inputs_odd else "hardware_mismatch"


def findings(fleet: Fleet, listed: Mapping[str, Mask], level: float, tolerance: float = 0.1) -> tuple[Finding, ...]:
    """One finding per first odd layer and cause, in graph order.

    ``listed`` holds the odd processes by agent, flat as in `detector.statistics.fleet.e_values`. The inputs are tested
    once more by themselves at the false discovery rate ``level``, which is sharper and only helps to tell the cause.
    ``tolerance`` is that of `compare`. What the batch had too few requests to test is not told of.
    """
    marked = [listed[name].reshape(fleet.tested.shape[1:]) & fleet.tested[i] for i, name in enumerate(fleet.agents)]
    odd = [_odd(fleet, agent, processes, level) for agent, processes in enumerate(marked) if processes.any()]
    grouped: dict[tuple[int, Cause], list[_Odd]] = {}
    for one in sorted(odd, key=lambda one: (one.layer, -_distance(fleet, one))):
        grouped.setdefault((one.layer, one.cause), []).append(one)
    concerned = {one.agent for one in odd}
    return tuple(_finding(fleet, group, concerned, tolerance) for group in grouped.values())


def _odd(fleet: Fleet, agent: int, processes: Mask, level: float) -> _Odd:
    """``processes`` are the agent's odd ones, shape (layers, scalars)."""
    layers = np.flatnonzero(processes.any(axis=1))
    first = int(layers[0])
    # What is not finite has no distance in standard deviations, and is the worst that can be.
    order = np.where(np.arange(len(SCALARS)) == NONFINITE, np.inf, fleet.distances[agent, first])
    scalar = int(np.where(processes[first], order, -1.0).argmax())
    inputs = [number for number, probe in enumerate(fleet.probes) if probe.kind == "input"]
    now = benjamini_hochberg(fleet.p_values[agent, inputs].reshape(-1), level)
    inputs_odd = bool(now.any() or processes[inputs].any())
    return _Odd(agent, first, scalar, tuple(int(layer) for layer in layers), inputs_odd)


def _distance(fleet: Fleet, one: _Odd) -> float:
    return float(fleet.distances[one.agent, one.layer, one.scalar])


def _finding(fleet: Fleet, group: Sequence[_Odd], concerned: set[int], tolerance: float) -> Finding:
    """``group`` begins with the worst agent; ``concerned`` are all odd agents."""
    worst, probe = group[0], fleet.probes[group[0].layer]
    at = (worst.layer, worst.scalar)
    tested = [a for a in range(len(fleet.agents)) if fleet.tested[a][at]]
    others = [a for a in tested if a not in concerned]
    names = [fleet.agents[one.agent] for one in group]
    evidence = tuple(_evidence(fleet, one, others) for one in group[:WORST])
    centre, reference, unit = (float(array[at]) for array in (fleet.centres, fleet.reference, fleet.units))
    alike = abs(centre - reference) <= tolerance * unit
    alert = alert_for("fleet", worst.cause)
    width = probe.channels or 1
    return Finding(
        layer=probe.name,
        kind=probe.kind,
        position=probe.position,
        test="fleet",
        cause=worst.cause,
        severity=severity_of(alert),
        origin=True,
        channels=tuple(range(width)),
        channels_total=width,
        statistic=abs(float(fleet.values[worst.agent][at]) - centre),
        p_value=evidence[0].p_value,
        effect=evidence[0].effect,
        n=evidence[0].n,
        n_reference=evidence[0].n_reference,
        summary=words.listing(names) + evidence[0].text + words.inputs_sentence(names, worst.inputs_odd),
        alert=alert,
        evidence=evidence,
        details={
            "agents": names,
            "scalar": SCALARS[worst.scalar],
            "value": float(fleet.values[worst.agent][at]),
            "fleet": centre,
            "reference": reference,
            "others": len(others),
            "others_as_reference": alike,
            "inputs_odd": worst.inputs_odd,
            "layers": [fleet.probes[layer].name for layer in worst.layers],
            "by_agent": _table(fleet, at, tested, concerned),
        },
    )


def _evidence(fleet: Fleet, one: _Odd, others: Sequence[int]) -> ChannelEvidence:
    at, layer = (one.layer, one.scalar), fleet.probes[one.layer].name
    others = [agent for agent in others if fleet.tested[agent][at]]
    value, distance = float(fleet.values[one.agent][at]), _distance(fleet, one)
    text = words.of_agent(
        fleet.agents[one.agent], layer, one.scalar, value, [float(fleet.values[a][at]) for a in others],
        float(fleet.reference[at]),
    )  # fmt: skip
    return ChannelEvidence(
        channel=WHOLE_LAYER,
        label="odd",
        statistic=abs(value - float(fleet.centres[at])),
        p_value=float(fleet.p_values[one.agent][at]),
        effect=distance,
        n=int(fleet.n[one.agent, one.layer]),
        n_reference=int(sum(fleet.n[agent, one.layer] for agent in others)),
        text=text + words.away(one.scalar, distance),
    )


def _table(fleet: Fleet, at: tuple[int, int], tested: Sequence[int], concerned: set[int]) -> list[dict[str, object]]:
    """The agents that are farthest out at one layer."""
    ordered = sorted(tested, key=lambda agent: -float(fleet.distances[agent][at]))
    return [
        {
            "agent": fleet.agents[agent],
            "n": int(fleet.n[agent, at[0]]),
            "value": float(fleet.values[agent][at]),
            "distance": float(fleet.distances[agent][at]),
            "p_value": float(fleet.p_values[agent][at]),
            "odd": agent in concerned,
        }
        for agent in ordered[:WORST]
    ]
