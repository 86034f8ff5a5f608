"""Which alert a finding leads to, and whom that concerns."""

from __future__ import annotations

from detector.domain.finding import Cause, Severity, Test

_CRITICAL = {
    "ReluscopeDeadNeurons",
    "ReluscopeActivationExplosion",
    "ReluscopeHardwareMismatch",
    "ReluscopeServedModelMismatch",
    "ReluscopeTelemetryGap",
}


def alert_for(test: Test, cause: Cause) -> str:
    """The alert that a finding leads to."""
    if test == "fleet":
        return "ReluscopeOddPod"
    if cause == "input_shift":
        return "ReluscopeInputShift"
    if cause == "quantization_fault":
        return "ReluscopeQuantizationFault"
    if cause == "hardware_mismatch":
        return "ReluscopeHardwareMismatch"
    if test == "response":
        return "ReluscopeServedModelMismatch"
    if test == "dead" and cause == "dead_neurons":
        return "ReluscopeDeadNeurons"
    if test == "explosion" and cause == "activation_explosion":
        return "ReluscopeActivationExplosion"
    return "ReluscopeActivationDrift"


def severity_of(alert: str) -> Severity:
    """Critical alerts page, warnings make tickets."""
    return "critical" if alert in _CRITICAL else "warning"
