"""The paired part of a check: needs comparisons, but no reference of activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from agent.summary.histogram import Ints
from agent.wire import Probe
from detector.domain.finding import Cause, Check
from detector.domain.settings import CheckSettings, PairedSettings
from detector.domain.types import AgentComparison, ModelVersion
from detector.paired.groups import ComparedGroup, agreement, groups, request_level
from detector.paired.mismatch import mismatch
from detector.paired.quantization import quantization
from detector.paired.verdict import OpenFinding, with_channels


class ComparisonStore(Protocol):
    """The part of the store that paired checks need."""

    def comparisons(
        self, version_id: int, since: datetime, until: datetime, holdouts_since: datetime
    ) -> list[AgentComparison]: ...
    def channel_activity(self, of: Sequence[AgentComparison], layer: str) -> tuple[Ints, Ints]: ...
    def probes(self, version_id: int) -> list[Probe]: ...


TESTS = 2
"""Of a group at most: top-1 agreement and accuracy."""


def extended(
    store: ComparisonStore,
    version: ModelVersion,
    settings: PairedSettings,
    now: datetime,
    check: Check,
    budget: CheckSettings,
) -> Check:
    """``check`` with what the comparisons of the lookback say, and its status where they make findings."""
    since = now - timedelta(seconds=settings.paired_seconds)
    holdouts_since = now - timedelta(seconds=settings.holdout_seconds)
    found = groups(store.comparisons(version.id, since, now, holdouts_since))
    if not found:
        return check
    level = request_level(budget, TESTS * len(found))
    verdicts = judge(found, _output(store.probes(version.id)), settings, level)
    findings = tuple(
        with_channels(one, *store.channel_activity(one.of, one.finding.layer), settings.paired_level)
        for one in verdicts
    )
    return replace(
        check,
        status="findings" if findings else check.status,
        findings=(*check.findings, *findings),
        comparisons=tuple(agreement(group) for group in found),
    )


def judge(found: Sequence[ComparedGroup], output: Probe, stated: PairedSettings, level: float) -> list[OpenFinding]:
    """The verdicts on all groups; ``output`` is the layer to name where no compared layer explains a difference.

    Requests are tested at ``level``, by every check anew; a holdout, which is run once for a deployment, at the level
    that is ``stated``.
    """
    verdicts: list[OpenFinding] = []
    for group in found:
        settings = stated if group.total.kind == "holdout" else replace(stated, paired_level=level)
        if group.total.kind in ("reference_model", "holdout"):
            # A holdout's baseline is the labels' file; its reference is the model that stood beside the served one.
            beside = group.total.reference if group.total.kind == "holdout" else group.total.baseline
            cause: Cause = "quantization_fault" if beside.endswith(".onnx") else "model_change"
            # Requests and holdout lose the same layers: behind the origin, each is told once.
            told = {one.finding.layer for one in verdicts if one.finding.test == "quantization"}
            verdicts += [
                one
                for one in quantization(group, cause, output, settings)
                if one.finding.origin or one.finding.layer not in told
            ]
        elif group.total.kind == "cpu_provider":
            verdicts += mismatch(group, "hardware", output, settings)
        else:
            verdicts += mismatch(group, "response", output, settings)
    return verdicts


def _output(probes: Sequence[Probe]) -> Probe:
    """The model's last output: where a difference shows that no layer explains."""
    outputs = [probe for probe in probes if probe.kind == "output"]
    return (outputs or list(probes) or [Probe("output", "Output", "output", None, 1, "output", 0, False)])[-1]
