"""Is the served model, quantized or new, still the reference model? And if not, where does it begin?

Top-1 agreement and accuracy are judged by exact tests. SQNR is no share and has no such test: it says *where*, and
raises a finding of its own only at the outputs of a model without classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.wire import Comparison, Probe, ProbeComparison, cosine, sqnr_db
from detector.domain.finding import Cause
from detector.domain.settings import PairedSettings
from detector.paired import statistics, words
from detector.paired.groups import ComparedGroup
from detector.paired.verdict import OpenFinding, finding_of


def quantization(group: ComparedGroup, cause: Cause, output: Probe, settings: PairedSettings) -> list[OpenFinding]:
    """Whether the served model's answers are still the reference model's, and the layers that lost them."""
    total, loss = group.total, _loss(group.total, settings)
    compared = [item for item in total.probes if item.elements]
    low = [item for item in compared if sqnr_db(item) < settings.min_sqnr_db]
    outputs = [item for item in low if item.probe.kind == "output" and item.n >= settings.min_compared]
    if not (loss.disagrees or loss.drops or (outputs and not total.top1_n)):
        return []
    if low:
        first = low[0].probe
        told = [words.low_sentence(low[0], words.baseline(total), settings.min_sqnr_db)]
    else:
        first = next((item.probe for item in reversed(compared) if item.probe.kind == "output"), output)
        worst = min(compared, key=sqnr_db, default=None)
        told = [words.nowhere_low(first.name, worst, settings.min_sqnr_db)]
    told += [words.top1(total)] if total.top1_n else []
    told += [words.accuracy(total, loss.p_drop)] if total.baseline_n else []
    whole = finding_of(
        first, "quantization", cause, group, "; ".join(told),
        statistic=float(loss.lost if loss.drops else loss.differ),
        p_value=loss.p_drop if loss.drops else loss.p_differ,
        effect=loss.drop if loss.drops else loss.differ / max(total.top1_n, 1),
        n=total.n,
        origin=True,
        details={
            "sqnr_db": sqnr_db(low[0]) if low else None,
            "cosine": cosine(low[0]) if low else None,
            "top1_n": total.top1_n,
            "top1_agree": total.top1_agree,
            "disagreement_lower": loss.lower,
            "disagreement_upper": loss.upper,
            "accuracy_drop": loss.drop if total.baseline_n else None,
            "accuracy_p_value": loss.p_drop if total.baseline_n else None,
        },
    )  # fmt: skip
    return [OpenFinding(whole, group.members), *(_follower(item, cause, group, settings) for item in low[1:])]


@dataclass(frozen=True, slots=True)
class _Loss:
    """What became of the answers; ``differ`` and ``lost`` are requests, ``drop`` is a share."""

    differ: int
    lower: float
    upper: float
    p_differ: float
    disagrees: bool
    lost: int
    drop: float
    p_drop: float
    drops: bool


def _loss(total: Comparison, settings: PairedSettings) -> _Loss:
    level, differ = settings.paired_level, total.top1_n - total.top1_agree
    lower, upper = statistics.bounds(differ, total.top1_n, level)
    lost = total.only_baseline_correct - total.only_served_correct
    drop = lost / total.baseline_n if total.baseline_n else 0.0
    pairs = np.array([total.only_served_correct]), np.array([total.only_baseline_correct])
    p_drop = float(statistics.mcnemar(*pairs)[0])
    return _Loss(
        differ=differ,
        lower=lower,
        upper=upper,
        p_differ=statistics.above_limit(differ, total.top1_n, settings.max_disagreement),
        disagrees=lower > settings.max_disagreement,
        lost=lost,
        drop=drop,
        p_drop=p_drop,
        drops=drop > settings.max_accuracy_drop and p_drop < level,
    )


def _follower(item: ProbeComparison, cause: Cause, group: ComparedGroup, settings: PairedSettings) -> OpenFinding:
    """A further layer below the limit, behind the first one."""
    sentence = words.low_sentence(item, words.baseline(group.total), settings.min_sqnr_db)
    share = min(1.0, item.noise / item.signal) if item.signal else 1.0
    details = {"sqnr_db": sqnr_db(item), "cosine": cosine(item)}
    finding = finding_of(
        item.probe, "quantization", cause, group, sentence,
        statistic=sqnr_db(item), p_value=1.0, effect=share, n=item.n, origin=False, details=details,
    )  # fmt: skip
    return OpenFinding(finding, group.members)
