"""From test results to findings: where a change begins, what caused it, and which alert it leads to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from detector.checks.layer_findings import LayerResult, findings_of
from detector.domain.alerts import alert_for, severity_of
from detector.domain.finding import Cause, Finding


def conclude(layers: Sequence[LayerResult], inputs_moved: bool = False) -> tuple[Finding, ...]:
    """Findings in graph order, with cause and origin.

    ``inputs_moved`` says that a test of the inputs alone, which is sharper than one among all layers, found a shift.
    """
    ordered = sorted(layers, key=lambda layer: (layer.probe.position, layer.probe.name))
    found = [finding for layer in ordered for finding in findings_of(layer)]
    moved = inputs_moved or any(finding.kind == "input" for finding in found)
    return tuple(_origins(_with_cause(finding, found, moved) for finding in found))


def _with_cause(finding: Finding, found: Sequence[Finding], moved: bool) -> Finding:
    cause = _cause(finding, found, moved)
    alert = alert_for(finding.test, cause)
    return replace(finding, cause=cause, alert=alert, severity=severity_of(alert))


def _cause(finding: Finding, found: Sequence[Finding], moved: bool) -> Cause:
    """Shifted inputs explain everything; else a broken layer explains itself and what drifts behind it."""
    if moved:
        return "input_shift"
    if finding.test == "dead":
        return "dead_neurons"
    if finding.test == "explosion":
        return "activation_explosion"
    broken = [o for o in found if o.test in ("dead", "explosion") and o.position <= finding.position]
    if not broken:
        return "model_change"
    first = min(broken, key=lambda other: (other.position, other.test))
    return "dead_neurons" if first.test == "dead" else "activation_explosion"


def _origins(findings: Iterable[Finding]) -> list[Finding]:
    """Marks, for each cause, its first layer: all drifted inputs for a shift, since no input is behind another."""
    listed = list(findings)
    first: dict[Cause, int] = {}
    for finding in listed:
        first.setdefault(finding.cause, finding.position)
        if finding.test == "dead" and finding.cause == "dead_neurons":
            first[finding.cause] = min(first[finding.cause], finding.position)
    return [
        replace(f, origin=f.kind == "input" or f.position == first[f.cause])
        if f.cause == "input_shift"
        else replace(f, origin=f.position == first[f.cause])
        for f in listed
    ]
