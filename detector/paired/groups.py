"""What paired verdicts are made from: comparisons joined by baseline, and the level they may err at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from agent.wire import Comparison, cosine, merge, sqnr_db
from detector.domain.finding import Agreement, ProbeAgreement
from detector.domain.settings import CheckSettings
from detector.domain.types import AgentComparison
from detector.statistics.sequential import SHARES


def request_level(settings: CheckSettings, tests: int) -> float:
    """Chance that one of ``tests`` paired tests of requests may err in one check, so that the alarm budget is kept.

    Checks overlap in what they look at, so no more than the sum of their levels is promised: all the checks of
    ``settings.false_page_days`` together have one share of one false page.
    """
    checks = settings.false_page_days * 86_400 / settings.check_interval
    return min(0.5, 1 / (SHARES * max(checks, 1.0) * max(tests, 1)))


@dataclass(frozen=True, slots=True, eq=False)
class ComparedGroup:
    """What all agents compared with one baseline."""

    members: tuple[AgentComparison, ...]
    total: Comparison

    @property
    def agents(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(sorted({one.agent_id for one in self.members}))


def groups(comparisons: Sequence[AgentComparison]) -> list[ComparedGroup]:
    """By kind and baseline; only its newest file, where a baseline's name was used for several.

    A holdout is the same requests for every agent: adding agents up would count them several times. Of each agent the
    newest run counts, and of these the newest on each execution provider stands for all; where that one is of no
    requests, the holdout was withdrawn.
    """
    found: dict[tuple[str, str, str], list[AgentComparison]] = {}
    for one in _newest_holdouts(comparisons):
        body = one.comparison
        provider = body.provider if body.kind == "holdout" else ""
        found.setdefault((body.kind, body.baseline, provider), []).append(one)
    made = []
    for members in found.values():
        newest = max(members, key=_age)
        digest = newest.comparison.baseline_digest
        same = [one for one in members if one.comparison.baseline_digest == digest]
        if newest.comparison.kind != "holdout":
            made.append(joined(same))
        elif newest.comparison.n:
            made.append(joined([newest]))
    return made


def _newest_holdouts(comparisons: Sequence[AgentComparison]) -> list[AgentComparison]:
    """Without the holdouts that their agents have run again since, as with another file or on another provider."""
    newest: dict[str, AgentComparison] = {}
    for one in comparisons:
        if one.comparison.kind == "holdout":
            newest[one.agent_id] = max(newest.get(one.agent_id, one), one, key=_age)
    return [one for one in comparisons if one.comparison.kind != "holdout" or newest[one.agent_id] is one]


def _age(one: AgentComparison) -> tuple[int, int, str]:
    """Larger for what is newer."""
    return one.comparison.end_ms, one.comparison.start_ms, one.agent_id


def joined(members: Sequence[AgentComparison]) -> ComparedGroup:
    """Of comparisons with one baseline; raises ValueError where they are not."""
    bodies = [one.comparison for one in members]
    start, end = min(body.start_ms for body in bodies), max(body.end_ms for body in bodies)
    provider = ", ".join(sorted({body.provider for body in bodies}))
    alike = [replace(body, start_ms=start, end_ms=end, provider=provider) for body in bodies]
    return ComparedGroup(tuple(members), reduce(merge, alike))


def agreement(group: ComparedGroup) -> Agreement:
    """What is kept of a group with the check."""
    total = group.total
    names = (
        "kind", "baseline", "n", "top1_n", "top1_agree", "accuracy_n", "served_correct", "baseline_n",
        "baseline_correct", "mismatched",
    )  # fmt: skip
    probes = tuple(
        ProbeAgreement(item.probe.name, item.n, sqnr_db(item), cosine(item), item.mismatched)
        for item in total.probes
        if item.elements
    )
    return Agreement(agents=len(group.agents), probes=probes, **{name: getattr(total, name) for name in names})
