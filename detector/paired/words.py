"""Paired verdicts in words that an on-call engineer understands: one sentence per finding, one per channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.wire import Comparison, ProbeComparison, sqnr_db
from detector.domain.finding import ChannelEvidence
from detector.domain.words import p_text, percent

NAMED = 3
"""Agents named in a sentence; the finding's details have all."""
NOT_THE_FILE = "the served model is not the file on disk"
"""The conclusion where no agent's replay gives what was served."""


def decibels(value: float) -> str:
    """An SQNR: "8.1 dB"."""
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:.1f} dB"


def baseline(total: Comparison) -> str:
    """What the served model was compared with."""
    beside = f"version {total.reference}" if total.reference.isdecimal() else "the reference model"
    named = {"served_response": "the served response", "holdout": f"{beside} on {total.baseline}"}
    return named.get(total.kind, total.baseline)


def low_sentence(item: ProbeComparison, against: str, limit: float) -> str:
    """A layer below the limit."""
    told = f"SQNR {decibels(sqnr_db(item))} against {against} over {_requests(item.n)}, below {limit:g}"
    return f"{item.probe.name}: {told}"


def nowhere_low(layer: str, worst: ProbeComparison | None, limit: float) -> str:
    """Where the model's answer suffers though no layer is below the limit."""
    if worst is None:
        return f"{layer}: no layer was compared"
    lowest = f"the lowest is {decibels(sqnr_db(worst))} at {worst.probe.name}"
    return f"{layer}: no layer's SQNR is below {limit:g} dB, {lowest}"


def top1(total: Comparison) -> str:
    """How often both sides answer the same."""
    return f"top-1 agrees in {total.top1_agree} of {total.top1_n}"


def accuracy(total: Comparison, p_value: float) -> str:
    """What the served model gets right, and the baseline."""
    served, reference = total.served_correct / total.accuracy_n, total.baseline_correct / total.baseline_n
    return (
        f"accuracy {percent(served)} against {percent(reference)} on {total.baseline_n} labelled requests "
        f"({total.only_baseline_correct} lost, {total.only_served_correct} won; {p_text(p_value)})"
    )


def mismatch_sentence(layer: str, total: Comparison, agents: Sequence[str]) -> str:
    """Which agents' outputs differ from the baseline beyond tolerance."""
    named = ", ".join(agents[:NAMED]) + (f" and {len(agents) - NAMED} more" if len(agents) > NAMED else "")
    where = f"{named} ({total.provider})" if total.provider else named
    text = f"{layer}: on {where} {total.mismatched} of {_requests(total.n)} differ from {baseline(total)}"
    return f"{text} beyond tolerance, first at this layer"


def others_sentence(agents: int, mismatched: int, n: int) -> str:
    """The agents that are not concerned, to compare with."""
    return f"; on {agents} other agent{'' if agents == 1 else 's'} {mismatched} of {n}" if agents else ""


def of_channel(channel: int, served: int, baseline: int, n: int, p_value: float) -> ChannelEvidence:
    """A channel that one side activates more often than the other."""
    effect = abs(served - baseline) / max(n, 1)
    text = (
        f"channel {channel}: active only in the baseline in {baseline}, only as served in {served} of {_requests(n)} "
        f"(net {percent(effect)}); {p_text(p_value)}"
    )
    return ChannelEvidence(channel, "disagrees", float(served + baseline), p_value, effect, n, n, text)


def _requests(n: int) -> str:
    return f"{n} request" if n == 1 else f"{n} requests"
