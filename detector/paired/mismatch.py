"""Does the hardware compute what it should, and is what is served the file on disk?

The share of requests beyond the agent's tolerance is judged by exact binomial tests with the limit inside the null
hypothesis, so that few requests prove little and many do not turn a harmless difference into an alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.wire import Comparison, Probe
from detector.domain.finding import WORST, Cause, Test
from detector.domain.settings import PairedSettings
from detector.paired import statistics, words
from detector.paired.groups import ComparedGroup, joined
from detector.paired.verdict import OpenFinding, finding_of
from detector.statistics.correction import benjamini_hochberg


def mismatch(group: ComparedGroup, test: Test, output: Probe, settings: PairedSettings) -> list[OpenFinding]:
    """Whether some agents' outputs differ beyond tolerance more often than may be; one verdict per layer of origin."""
    agents = _agents(group, settings)
    bad = [agent for agent in agents if agent.bad]
    if not bad:
        return []
    others = [agent for agent in agents if not agent.bad and agent.n]
    # Where no agent is proven to give what was served, it is not the hardware of one of them.
    alone = _differs(bad, others, settings.paired_level)
    cause: Cause = "model_change" if test == "response" and not alone else "hardware_mismatch"
    compare = words.others_sentence(len(others), sum(one.k for one in others), sum(one.n for one in others))
    origins: dict[str, tuple[Probe, list[_Agent]]] = {}
    for agent in bad:
        first = _first_mismatch(agent.of.total, output, settings)
        origins.setdefault(first.name, (first, []))[1].append(agent)
    table = [
        {"agent": one.name, "provider": one.of.total.provider, "n": one.n, "mismatched": one.k, "p_value": one.p_value}
        for one in sorted(agents, key=lambda one: one.p_value)[:WORST]
    ]
    verdicts = []
    for first, concerned in origins.values():
        whole = joined([member for agent in concerned for member in agent.of.members])
        sentence = words.mismatch_sentence(first.name, whole.total, [one.name for one in concerned]) + compare
        sentence += f": {words.NOT_THE_FILE}" if cause == "model_change" else ""
        k, n = whole.total.mismatched, whole.total.n
        finding = finding_of(
            first, test, cause, whole, sentence, statistic=float(k), effect=k / n, n=n, origin=True,
            p_value=min(one.p_value for one in concerned),
            details={"mismatched": k, "by_agent": table, "others": len(others), "others_differ": alone},
        )  # fmt: skip
        verdicts.append(OpenFinding(finding, whole.members))
    return verdicts


@dataclass(frozen=True, slots=True, eq=False)
class _Agent:
    """One agent's requests."""

    name: str
    of: ComparedGroup
    p_value: float
    bad: bool

    @property
    def k(self) -> int:
        return self.of.total.mismatched

    @property
    def n(self) -> int:
        return self.of.total.n


def _agents(group: ComparedGroup, settings: PairedSettings) -> list[_Agent]:
    """Tested one by one, so that a bad GPU does not vanish in a large fleet; corrected for their number."""
    parts = [joined([one for one in group.members if one.agent_id == name]) for name in group.agents]
    p_values = [statistics.above_limit(part.total.mismatched, part.total.n, settings.max_mismatch) for part in parts]
    rejected = benjamini_hochberg(np.array(p_values), settings.paired_level)
    return [
        _Agent(name, part, p_value, bool(bad))
        for name, part, p_value, bad in zip(group.agents, parts, p_values, rejected, strict=True)
    ]


def _differs(bad: Sequence[_Agent], others: Sequence[_Agent], level: float) -> bool:
    """Whether the others together are proven to mismatch less often: a few clean requests prove nothing."""
    lower, _ = statistics.bounds(sum(agent.k for agent in bad), sum(agent.n for agent in bad), level)
    _, upper = statistics.bounds(sum(agent.k for agent in others), sum(agent.n for agent in others), level)
    return upper < lower


def _first_mismatch(total: Comparison, output: Probe, settings: PairedSettings) -> Probe:
    """The first layer that mismatches too often by itself; else the first that does so at all."""
    some = [item for item in total.probes if item.mismatched]
    often = (
        item.probe
        for item in some
        if statistics.above_limit(item.mismatched, item.n, settings.max_mismatch) <= settings.paired_level
    )
    return next(often, some[0].probe if some else output)
