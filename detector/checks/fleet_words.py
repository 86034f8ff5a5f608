"""An odd agent in words: what differs, from whom, and by how much."""

from __future__ import annotations

from collections.abc import Sequence

from detector.domain.words import percent
from detector.statistics.fleet.deviation import MEAN, NONFINITE, SCALARS

NAMED = 3
"""Agents named in a sentence; the finding's details have more."""


def of_agent(agent: str, layer: str, scalar: int, value: float, others: Sequence[float], reference: float) -> str:
    """ "agent pod-3: mean of conv1 at 0.81, the other 5 agents 0.42 to 0.45, the reference 0.44"."""
    text = f"agent {agent}: {SCALARS[scalar]} of {layer} at {_number(scalar, value)}"
    if others:
        low, high = _number(scalar, min(others)), _number(scalar, max(others))
        between = low if low == high else f"{low} to {high}"
        text += f", the other {len(others)} agents {between}" if len(others) > 1 else f", the other agent {between}"
    return f"{text}, the reference {_number(scalar, reference)}"


def away(scalar: int, distance: float) -> str:
    """How far from the fleet; nothing where the shares say it themselves."""
    return "" if scalar == NONFINITE else f"; {distance:.2g} standard deviations from the fleet"


def inputs_sentence(agents: Sequence[str], odd: bool) -> str:
    """What the inputs say of the cause."""
    whose = "its inputs are" if len(agents) == 1 else "their inputs are"
    return f"; {whose} odd too" if odd else f"; {whose} not odd"


def listing(agents: Sequence[str]) -> str:
    """ "2 odd agents, pod-3 and pod-7; "; empty for a single one, which the sentence names anyway."""
    if len(agents) < 2:
        return ""
    named, rest = list(agents[:NAMED]), len(agents) - NAMED
    told = ", ".join(named) + f" and {rest} more" if rest > 0 else f"{', '.join(named[:-1])} and {named[-1]}"
    return f"{len(agents)} odd agents, {told}; "


def _number(scalar: int, value: float) -> str:
    return f"{value:.3g}" if scalar == MEAN else percent(value)
