"""Cause, origin, alert and sentences of findings."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.wire import Probe
from detector.checks.examine import accumulate, judge, measure
from detector.checks.policy import conclude
from detector.domain.alerts import alert_for, severity_of
from detector.domain.finding import Cause, Finding, Test
from detector.domain.settings import CheckSettings
from detector.domain.words import p_text, percent
from detector.report.words import _verb
from detector.statistics.sequential import AlarmEvidence
from tests.detector.fakes import probe, rectified, summarise

Values = NDArray[np.float64]
PROBES = [
    probe("image", 0, 1, "input"),
    probe("conv1", 1, 4),
    probe("conv2", 2, 4),
    probe("fc1", 3, 4),
    probe("logits", 4, 2, "output"),
]


def find(*changed: str, how: str = "shift", probes: list[Probe] = PROBES) -> tuple[Finding, ...]:
    """Findings when some layers are shifted, and others ("dead:conv2", "burst:conv2") broken."""
    rng = np.random.default_rng(0)
    before, now = {}, {}
    for one in probes:
        channels = one.channels or 1
        zeros = 0.5 if one.kind == "activation" else 0.0
        values = rectified(rng, 400, channels, zeros)
        if one.name in changed:
            values *= 3
        if f"dead:{one.name}" in changed:
            values[:, :2] = 0
        if f"burst:{one.name}" in changed:
            values[:, 1] *= 1e4
        if f"nan:{one.name}" in changed:
            values[:, :3] = np.nan
        before[one.name], now[one.name] = summarise(rectified(rng, 1000, channels, zeros)), summarise(values)
    settings, days = CheckSettings(), 5 / 1440
    measured = measure(probes, before, now, settings)
    evidence: dict[str, AlarmEvidence] = {}
    for _ in range(3):  # windows that are all alike
        evidence = accumulate(evidence, measured, days, settings)
    return conclude(*judge(measured, evidence, days, settings))


def told(findings: tuple[Finding, ...]) -> list[tuple[str, str, str, bool]]:
    return [(f.layer, f.test, f.cause, f.origin) for f in findings]


def test_nothing_changed_nothing_found() -> None:
    assert find() == ()


def test_shifted_inputs_explain_everything() -> None:
    findings = find("image", "conv1", "dead:conv2", "burst:fc1")
    assert {f.cause for f in findings} == {"input_shift"}
    assert {f.alert for f in findings} == {"ReluscopeInputShift"}
    assert {f.severity for f in findings} == {"warning"}
    assert [f.layer for f in findings if f.origin] == ["image"]


def test_a_dead_layer_explains_itself_and_what_drifts_behind_it() -> None:
    findings = find("dead:conv2", "fc1", "logits")
    assert told(findings) == [
        ("conv2", "dead", "dead_neurons", True),
        ("fc1", "drift", "dead_neurons", False),
        ("logits", "drift", "dead_neurons", False),
    ]
    assert [f.alert for f in findings] == ["ReluscopeDeadNeurons"] + ["ReluscopeActivationDrift"] * 2
    assert [f.severity for f in findings] == ["critical", "warning", "warning"]
    assert findings[0].channels == (0, 1)
    assert findings[0].channels_total == 4


def test_what_drifts_before_a_dead_layer_has_another_cause() -> None:
    findings = find("conv1", "dead:conv2", "fc1")
    assert told(findings) == [
        ("conv1", "drift", "model_change", True),
        ("conv2", "dead", "dead_neurons", True),
        ("fc1", "drift", "dead_neurons", False),
    ]


def test_an_explosion_explains_itself_and_what_drifts_behind_it() -> None:
    findings = find("burst:conv1", "conv2")
    assert told(findings) == [
        ("conv1", "explosion", "activation_explosion", True),
        ("conv1", "drift", "activation_explosion", True),
        ("conv2", "drift", "activation_explosion", False),
    ]
    assert findings[0].alert == "ReluscopeActivationExplosion"
    assert findings[0].effect > 1000


def test_drift_with_the_same_inputs_is_a_model_change_from_its_first_layer_on() -> None:
    assert told(find("conv2", "fc1")) == [
        ("conv2", "drift", "model_change", True),
        ("fc1", "drift", "model_change", False),
    ]


def test_every_drifted_input_is_an_origin() -> None:
    probes = [probe("image", 0, 1, "input"), probe("mask", 1, 1, "input"), probe("conv1", 2, 4)]
    assert [f.layer for f in find("image", "mask", "conv1", probes=probes) if f.origin] == ["image", "mask"]


def test_the_order_of_probes_does_not_matter() -> None:
    shuffled = [PROBES[i] for i in (3, 1, 4, 0, 2)]
    assert [f.position for f in find("dead:conv2", "fc1", "logits", probes=shuffled)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("test", "cause", "alert", "severity"),
    [
        ("drift", "input_shift", "ReluscopeInputShift", "warning"),
        ("dead", "input_shift", "ReluscopeInputShift", "warning"),
        ("dead", "dead_neurons", "ReluscopeDeadNeurons", "critical"),
        ("drift", "dead_neurons", "ReluscopeActivationDrift", "warning"),
        ("explosion", "activation_explosion", "ReluscopeActivationExplosion", "critical"),
        ("drift", "activation_explosion", "ReluscopeActivationDrift", "warning"),
        ("drift", "model_change", "ReluscopeActivationDrift", "warning"),
    ],
)
def test_alerts_and_severities(test: Test, cause: Cause, alert: str, severity: str) -> None:
    assert alert_for(test, cause) == alert
    assert severity_of(alert) == severity


def test_what_is_not_finite_is_not_said_to_have_grown() -> None:
    lost, *_ = find("nan:conv1")
    assert lost.summary == "conv1: 3 of 4 channels are not finite in up to 400 requests"
    assert (lost.details["channels_grown"], lost.details["shown_now"]) == (0, True)
    assert _verb(lost) == "are not finite"
    (burst,) = (f for f in find("burst:conv1") if f.test == "explosion")
    assert (burst.details["channels_grown"], _verb(burst)) == (1, "exploded")


def test_findings_speak_to_people_and_fit_into_json() -> None:
    dead, burst, drifted, _ = find("dead:conv1", "burst:conv2", "fc1")
    assert dead.summary == "conv1: of 4 channels 2 died in the last 400 requests"
    assert (
        f"channel {dead.evidence[0].channel} of conv1: active in 0 of 400 requests; reference" in dead.evidence[0].text
    )
    assert "to be sure" in dead.evidence[0].text
    assert "1 of 4 channels exploded" in burst.summary
    assert "requests beyond the limit" in burst.evidence[0].text
    assert "4 of 4 channels drifted" in find("fc1")[0].summary
    assert drifted.layer in ("conv2", "fc1")
    for finding in find("image", "dead:conv1", "burst:conv2", "fc1", "logits"):
        json.dumps(asdict(finding), allow_nan=False)
        assert finding.evidence[0].p_value == finding.p_value
        assert {entry.channel for entry in finding.evidence} <= set(finding.channels)


def test_only_the_worst_channels_are_shown_worst_first() -> None:
    wide = [probe("fc1", 0, 64)]
    (finding,) = find("fc1", probes=wide)
    effects = [entry.effect for entry in finding.evidence]
    assert len(finding.channels) > len(effects) == 10
    assert effects == sorted(effects, reverse=True)


def test_numbers_in_words() -> None:
    shares = (0.0, 0.29, 0.314, 0.05, 0.0123, 0.00042, 0.9993, 0.99996, 1.0, None, math.nan)
    said = ["0 %", "29 %", "31.4 %", "5 %", "1.2 %", "0.04 %", "99.93 %", "99.996 %", "100 %", "–", "–"]
    assert [percent(share) for share in shares] == said
    assert p_text(3e-7) == "p = 3.0e-07"
    assert p_text(0.0) == "p < 1e-300"
