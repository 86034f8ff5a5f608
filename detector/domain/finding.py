"""What checks conclude: the vocabulary shared by tests, policy, store, metrics and report."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from agent.wire import BaselineKind

Test = Literal["dead", "drift", "explosion", "sparsity", "quantization", "hardware", "response", "fleet"]
PAIRED: tuple[Test, ...] = ("quantization", "hardware", "response")
"""Tests of the same requests on two sides."""
NOT_BY_CHANNEL: tuple[Test, ...] = (*PAIRED, "fleet")
"""Tests that do not hold channels against the reference: their findings' summaries say all."""
WHOLE_LAYER = -1
"""The channel number of evidence that is about a layer as a whole."""
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
WORST = 10
"""Channels of a finding that are shown with their numbers."""


@dataclass(frozen=True, slots=True)
class ChannelEvidence:
    """One channel's numbers, kept for the worst channels of a finding."""

    channel: int
    """`WHOLE_LAYER` where it is about one agent's layer."""
    label: str
    """A `DeadLabel`, "drifted", "exploded", "sparser", "denser", "disagrees" or "odd"."""
    statistic: float
    p_value: float
    effect: float
    n: int
    n_reference: int
    text: str
    """In words: "channel 17 of conv3: active in 0 of 4,812 requests; reference 31 % of 1,000; needed 73 to be sure"."""


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
    """Of the worst channel: Cohen's omega for drift (standard deviations for ranks and active fraction), fall of the
    active rate for dead, growth factor for explosion. Of the layer, for sparsity: the distance from the
    reference in standard deviations of a channel. Of a paired test: the share of requests on which the two sides
    differ, or the accuracy lost. Of an odd agent: its distance from the fleet in standard deviations of the
    reference, or the share not finite."""
    n: int
    n_reference: int
    """Requests of the reference; of an odd agent, those of the other agents."""
    summary: str
    """One sentence for people."""
    alert: str
    """The alert this leads to, such as ReluscopeDeadNeurons; names the runbook too."""
    evidence: tuple[ChannelEvidence, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    """Further numbers (PSI, Jensen-Shannon, Wasserstein), JSON-serialisable."""


@dataclass(frozen=True, slots=True)
class ProbeAgreement:
    """How well a layer agrees with a baseline."""

    layer: str
    n: int
    sqnr_db: float
    """Power of the baseline's activations over that of the difference, in dB; inf where nothing differs."""
    cosine: float
    mismatched: int
    """Requests with an element beyond the agent's tolerance."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a check saw of one baseline: the same requests, run by the served model and by the baseline."""

    kind: BaselineKind
    baseline: str
    agents: int
    n: int
    top1_n: int
    top1_agree: int
    accuracy_n: int
    served_correct: int
    baseline_n: int
    baseline_correct: int
    mismatched: int
    probes: tuple[ProbeAgreement, ...]
    """Those with finite elements, in graph order."""

    @property
    def top1_agreement(self) -> float | None:
        """Share of requests with the same top-1 class; None where the model has no classes."""
        return self.top1_agree / self.top1_n if self.top1_n else None

    @property
    def accuracy(self) -> float | None:
        """Of the served model on labelled requests; None where there are none."""
        return self.served_correct / self.accuracy_n if self.accuracy_n else None

    @property
    def accuracy_delta(self) -> float | None:
        """Served minus baseline accuracy, so a loss is negative; None without labels or reference model."""
        if self.accuracy is None or not self.baseline_n:
            return None
        return self.accuracy - self.baseline_correct / self.baseline_n

    @property
    def mismatch_share(self) -> float | None:
        """Share of requests with an output beyond tolerance; None where no tolerance applies."""
        return self.mismatched / self.n if self.n and self.kind in ("cpu_provider", "served_response") else None

    @property
    def worst(self) -> ProbeAgreement | None:
        """The layer of the lowest SQNR, the first of equals."""
        return min(self.probes, key=lambda probe: probe.sqnr_db, default=None)


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
    layers: dict[str, dict[str, float]]
    """Per layer: counts by dead label plus "drifted", "exploded", "channels"; of rectifiers also the shares "sparsity",
    "sparsity_low" and "sparsity_high", the band."""
    findings: tuple[Finding, ...]
    alarms: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per test family: "evidence" as a share of the alarm threshold, and "alarm", 1 or 0."""
    comparisons: tuple[Agreement, ...] = ()
    """What paired replay said at the time."""
