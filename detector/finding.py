"""What checks conclude: the vocabulary shared by tests, policy, store, metrics and report."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Test = Literal["dead", "drift", "explosion"]
Cause = Literal[
    "input_shift",
    "dead_neurons",
    "activation_explosion",
    "quantization_fault",
    "hardware_mismatch",
    "model_change",
    "telemetry_gap",
    "slo_burn",
]
Severity = Literal["critical", "warning"]
DeadLabel = Literal["dead_at_reference", "newly_dead", "dormant", "unresolved", "revived", "alive"]


@dataclass(frozen=True, slots=True)
class ChannelEvidence:
    """One channel's numbers, kept for the worst channels of a finding."""

    channel: int
    label: str
    """A `DeadLabel`, "drifted" or "exploded"."""
    statistic: float
    p_value: float
    effect: float
    n: int
    n_reference: int
    text: str
    """The same in words: "channel 17: active in 0 of 4812 requests; reference 31 %; needed 73 to be sure"."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's verdict on one layer."""

    layer: str
    kind: str
    """Probe kind: input, activation or output."""
    position: int
    test: Test
    cause: Cause
    severity: Severity
    origin: bool
    """Whether this is the first layer, in graph order, where the change begins."""
    channels: tuple[int, ...]
    """Channels concerned, ascending."""
    channels_total: int
    statistic: float
    """Of the worst channel."""
    p_value: float
    effect: float
    """Of the worst channel: Cohen's omega for drift, fall of the active rate for dead, growth factor for explosion."""
    n: int
    n_reference: int
    summary: str
    """One sentence for people."""
    alert: str
    """The alert this leads to, such as ReluscopeDeadNeurons; names the runbook too."""
    evidence: tuple[ChannelEvidence, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    """Further numbers (PSI, Jensen-Shannon, Wasserstein), JSON-serialisable."""


@dataclass(frozen=True, slots=True)
class Check:
    """One scheduled run of tests on one model version."""

    model_version_id: int
    reference_id: int | None
    started_at: datetime
    finished_at: datetime
    window_start: datetime | None
    window_end: datetime | None
    n: int
    status: Literal["ok", "findings", "no_reference", "too_few_requests"]
    note: str
    layers: dict[str, dict[str, int]]
    """Per layer: counts by dead label plus "drifted", "exploded", "channels"."""
    findings: tuple[Finding, ...]
    alarms: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per test family: "evidence" as a share of the alarm threshold, and "alarm", 1 or 0."""
