"""What paired replay may take of the pod, and when two numbers count as different."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.intake.oip import Limits
from agent.paired.sums import Tolerance
from agent.replay import Device

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PairedSettings:
    """Every bound of paired replay."""

    rate: float = 0.02
    """Share of the sampled requests; 0 turns it off, holdouts aside."""
    per_minute: int = 60
    """Most requests (rows) compared in a minute."""
    duty_cycle: float = 0.05
    """Largest share of time spent in it, 0 to 1."""
    compare_previous: bool = False
    """Compare with the previous version in the repository where there is no reference model."""
    fetch_bytes: int = 128 * _MIB
    """Activations held at a time, both sides together."""
    queue_bytes: int = 32 * _MIB
    """Requests that wait to be compared."""
    join_bytes: int = 32 * _MIB
    """Responses that wait for their requests, and requests for their responses."""
    join_seconds: float = 30.0
    """How long they wait."""
    model_bytes: int = 1024 * _MIB
    """Largest model file that is loaded once more for it."""
    holdout_bytes: int = 256 * _MIB
    """Largest holdout, unpacked."""
    holdout_repeat_seconds: float = 3600.0
    """How often a holdout's result is sent again while it holds: the detector forgets what is not repeated."""
    kinship_requests: int = 100
    """Requests that a former version runs too, after a deployment, to tell whether the new one is near it; 0 for none.
    Where groups of probes take turns, so many for each group."""
    max_batch: int = 32
    tolerance: Tolerance = field(default_factory=lambda: Tolerance(rtol=0.02, atol=0.02))
    limits: Limits = field(default_factory=Limits)
    """For the bodies of responses."""
    device: Device = field(default_factory=lambda: Device(1, 2048 * _MIB))
    """Where replay runs."""
    nice: int = 10
    """Nice level of the thread."""
