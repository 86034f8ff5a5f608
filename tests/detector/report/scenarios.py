"""Model versions with a made-up past, and a store that holds one of them: what a report is tried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np

from agent.summary import Summary, empty, from_pooled, merge
from agent.wire import Probe, ProbeComparison
from detector.checks.fleet_findings import findings
from detector.domain.finding import Cause, ChannelEvidence, Check, Finding, Test
from detector.domain.layered import Layered
from detector.domain.settings import CheckSettings
from detector.domain.slots import Slot
from detector.paired import PairedSettings, extended
from detector.statistics.fleet import compare, of_summary
from detector.store import AgentComparison, AlertRow, HistoryPoint, ModelVersion, Reference, Span, StoredCheck
from tests.detector import fakes
from tests.detector.builders import compared, difference

NOW = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
VERSION = ModelVersion(7, "digits", "2", "4f1c" * 16, NOW - timedelta(days=1), NOW, NOW - 90 * MINUTE)
PROBES = (
    Probe("image", "Input", "image", 1, 1, "input", 0, False),
    Probe("conv1/relu", "Relu", "relu1_out", 16, 1, "activation", 1, True),
    Probe("conv2/relu", "Relu", "relu2_out", 32, 1, "activation", 2, True),
    Probe("fc1/relu", "Relu", "relu3_out", 64, 1, "activation", 3, True),
    Probe("logits", "Output", "logits", 10, 1, "output", 4, False),
)


@dataclass
class FakeStore:
    """Answers a report's questions from memory."""

    version: ModelVersion | None = VERSION
    windows: list[tuple[Span, dict[str, Summary]]] = field(default_factory=list)
    active: Reference | None = None
    done: list[Check] = field(default_factory=list)
    received: list[AlertRow] = field(default_factory=list)
    layers: Sequence[Probe] = PROBES
    slots: dict[Slot, Layered] = field(default_factory=dict)

    def versions(self, since: datetime) -> list[ModelVersion]:
        return [self.version] if self.version and self.windows else []

    def current_versions(self, now: datetime) -> list[ModelVersion]:
        return [self.version] if self.version else []

    def model_version(self, model: str, version: str | None) -> ModelVersion | None:
        known = self.version
        return known if known and known.model == model and version in (None, known.version) else None

    def previous_version(self, version_id: int) -> ModelVersion | None:
        return replace(VERSION, id=6, version="1")

    def probes(self, version_id: int) -> list[Probe]:
        return list(self.layers)

    def spans(self, version_id: int, start: datetime, end: datetime) -> list[Span]:
        return [span for span, _ in self.windows if start <= span.start and span.end <= end]

    def summaries(self, version_id: int, start: datetime, end: datetime) -> dict[str, Summary]:
        merged: dict[str, Summary] = {}
        for span, layers in self.windows:
            if start <= span.start and span.end <= end:
                for name, summary in layers.items():
                    merged[name] = merge(merged[name], summary) if name in merged else summary
        return merged

    def reference(self, version_id: int) -> Reference | None:
        return self.active

    def reference_slot(self, reference_id: int, slot: Slot) -> Layered:
        return self.slots[slot]

    def checks(self, version_id: int, since: datetime, limit: int) -> list[StoredCheck]:
        kept = [check for check in reversed(self.done) if check.finished_at >= since][:limit]
        return [StoredCheck(i, "digits", "2", check) for i, check in enumerate(kept)]

    def history(self, version_id: int, start: datetime, end: datetime) -> list[HistoryPoint]:
        return [
            _point(span.start, probe, layers[probe.name])
            for span, layers in self.windows
            for probe in self.layers
            if start <= span.start and span.end <= end
        ]

    def alerts(self, since: datetime) -> list[AlertRow]:
        return [alert for alert in self.received if alert.starts_at >= since]


def _point(start: datetime, probe: Probe, summary: Summary) -> HistoryPoint:
    finite = int(summary.finite.sum()) or 1
    share, mean = float(summary.active.sum()) / finite, float((summary.mean * summary.finite).sum()) / finite
    largest = float(summary.highest_max.max())
    return HistoryPoint(start, probe.name, probe.kind, probe.position, summary.n, share, mean, largest, 0)


def activations(
    rng: np.random.Generator, probe: Probe, n: int, shift: float = 0.0, dead: Sequence[int] = ()
) -> Summary:
    """One window of one layer: half-normal channels of unlike sparsity, shifted, some silent."""
    channels = probe.channels or 1
    raw = rng.normal(np.linspace(-0.8, 1.2, channels) + shift, 1.0, (n, channels))
    mean = np.maximum(raw, 0.0) if probe.exact_zero else raw
    mean[:, list(dead)] = 0.0
    return from_pooled(mean, mean * 1.5, (mean > 0) * 0.4)


def _finding(probe: Probe, test: Test, cause: Cause, origin: bool, channels: Sequence[int]) -> Finding:
    silent = test == "dead"
    alert = {"dead_neurons": "ReluscopeDeadNeurons", "input_shift": "ReluscopeInputShift"}[cause]
    text = "active in 0 of 2,400 requests; reference 31 %; needed 73 to be sure" if silent else "ω 0.62 over δ 0.10"
    evidence = tuple(
        ChannelEvidence(c, "newly_dead" if silent else "drifted", 0.0, 1e-40, 0.31, 2400, 3000, f"channel {c}: {text}")
        for c in channels[:8]
    )
    told = "stopped firing" if silent else "no longer have the reference's distribution"
    return Finding(
        layer=probe.name, kind=probe.kind, position=probe.position, test=test, cause=cause,
        severity="critical" if silent else "warning", origin=origin, channels=tuple(channels),
        channels_total=probe.channels or 1, statistic=812.0, p_value=1e-40, effect=0.62, n=2400, n_reference=3000,
        summary=f"{len(channels)} of {probe.channels} channels of {probe.name} {told}.", alert=alert,
        evidence=evidence, details={} if silent else {"psi": 0.41},
    )  # fmt: skip


def _alert(name: str, cause: str, layer: str, url: str) -> AlertRow:
    return AlertRow(
        "a1b2c3", name, "firing", "critical", "digits", "2", layer, cause, NOW - 18 * MINUTE, None, {},
        {"runbook_url": url}, name, 1, NOW - 18 * MINUTE,
    )  # fmt: skip


def _check(at: datetime, findings: tuple[Finding, ...], probes: Sequence[Probe]) -> Check:
    layers: dict[str, dict[str, float]] = {
        p.name: {"channels": p.channels or 1, "dead_at_reference": int(p.position == 3), "newly_dead": 0, "dormant": 0,
                 "unresolved": 0, "drifted": 0, "exploded": 0}
        for p in probes
    }  # fmt: skip
    for finding in findings:
        layers[finding.layer]["newly_dead" if finding.test == "dead" else "drifted"] = len(finding.channels)
    return Check(
        7, 3, at, at, at - 12 * MINUTE, at, 2400, "findings" if findings else "ok", "", layers, findings
    )  # fmt: skip


def story(kind: str, probes: Sequence[Probe] = PROBES, minutes: int = 90) -> FakeStore:
    """``kind``: "healthy", "dead" (conv2 loses channels 20 minutes ago) or "shift" (the images change then)."""
    rng = np.random.default_rng(4)
    store, start = FakeStore(layers=probes), NOW - minutes * MINUTE
    base = {p.name: empty(p.channels or 1) for p in probes}
    dead, channels = probes[2], [3, 7, 11, 19, 20]
    for minute in range(minutes):
        begin, late = start + minute * MINUTE, minute >= minutes - 20 and kind != "healthy"
        layers = {
            p.name: activations(
                rng, p, 200 + int(40 * np.sin(minute / 9)),
                shift=0.6 if late and (kind == "shift" or p.position > dead.position) else 0.0,
                dead=channels if late and kind == "dead" and p is dead else [2] if p.position == 3 else [],
            )
            for p in probes
        }  # fmt: skip
        store.windows.append((Span(begin, begin + MINUTE, layers[probes[0].name].n), layers))
        if minute < 15:
            base = {name: merge(base[name], summary) for name, summary in layers.items()}
        elif minute % 3 == 0:
            store.done.append(_check(begin + MINUTE, _findings(kind, probes, channels) if late else (), probes))
    n = next(iter(base.values())).n
    store.active = Reference(3, 7, "first_requests", 7, start, start + 15 * MINUTE, n, start + 15 * MINUTE, base)
    if kind != "healthy":
        name = "ReluscopeDeadNeurons" if kind == "dead" else "ReluscopeInputShift"
        url = f"http://reluscope-detector:8500/runbooks/{name}/v1"
        cause, layer = ("dead_neurons", dead.name) if kind == "dead" else ("input_shift", probes[0].name)
        store.received.append(_alert(name, cause, layer, url))
    return store


def paired_story() -> FakeStore:
    """A quantized version: conv2 lost its signal, accuracy fell, and one pod's GPU differs from the CPU."""
    store = story("healthy")

    def layers(n: int, *sqnr_db: float) -> tuple[ProbeComparison, ...]:
        return tuple(
            difference(
                p.name, p.position, n=n, sqnr_db=value, kind=p.kind,
                served=[2] * (p.channels or 1), baseline=[40 if c == 5 else 2 for c in range(p.channels or 1)],
            )
            for p, value in zip(PROBES, sqnr_db, strict=True)
        )  # fmt: skip

    cpu = compared(
        NOW, kind="cpu_provider", baseline="CPUExecutionProvider", n=180, probes=layers(180, np.inf, 118, 112, 109, 104)
    )
    wrong = replace(cpu, mismatched=11, probes=tuple(replace(p, mismatched=11) for p in cpu.probes[3:]))
    bodies = {
        "pod-a": compared(NOW, n=312, top1_agree=281, probes=layers(312, np.inf, 34.2, 7.9, 6.4, 5.8)),
        "pod-b": cpu,
        "pod-c": wrong,
        "pod-d": compared(
            NOW, kind="holdout", baseline="holdout.npz", n=500, top1_agree=455, accuracy_n=500, served_correct=441,
            baseline_n=500, baseline_correct=478, only_served_correct=2, only_baseline_correct=39,
            probes=layers(500, np.inf, 33, 8.2, 6.8, 6.1),
        ),
    }  # fmt: skip
    comparing = fakes.FakeStore()
    comparing.layers[7] = list(PROBES)
    comparing.compared[7] = [AgentComparison(i, agent, body) for i, (agent, body) in enumerate(bodies.items())]
    store.done[-1] = extended(comparing, VERSION, PairedSettings(), NOW, store.done[-1], CheckSettings())
    return store


def fleet_story() -> FakeStore:
    """One of four pods answers otherwise from conv1 on, with the same inputs."""
    store = story("healthy")
    assert store.active is not None
    reference = store.active.summaries
    agents = {
        f"pod-{name}": {
            p.name: replace(
                of_summary(reference[p.name]), n=600, pairs=600 * (p.channels or 1),
                mean=of_summary(reference[p.name]).mean + (0.8 if name == "c" and p.position in (1, 2) else 0),
            )
            for p in PROBES
        }
        for name in "abcd"
    }  # fmt: skip
    fleet = compare(agents, PROBES, reference, reference, {})
    assert fleet is not None
    listed = {name: (p < 0.001).reshape(-1) for name, p in zip(fleet.agents, fleet.p_values, strict=True)}
    store.done[-1] = replace(store.done[-1], status="findings", findings=findings(fleet, listed, 0.001))
    return store


def _findings(kind: str, probes: Sequence[Probe], channels: Sequence[int]) -> tuple[Finding, ...]:
    if kind == "dead":
        later = (_finding(p, "drift", "dead_neurons", False, range(6)) for p in probes[3:])
        return (_finding(probes[2], "dead", "dead_neurons", True, channels), *later)
    return tuple(
        _finding(p, "drift", "input_shift", p.position == 0, range((p.channels or 1) // 2 + 1)) for p in probes
    )
