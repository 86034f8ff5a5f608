"""What paired replay may take of the pod, and when two numbers count as different."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.intake.unpacking import Limits
from agent.options import INTERNAL, MIB, SECTION, Option
from agent.paired.sums import Tolerance
from agent.replay import Device


@dataclass(frozen=True, slots=True, config=SECTION)
class PairedSettings:
    """Every bound of paired replay."""

    rate: Annotated[float, Option("paired_rate")] = Field(default=0.02, ge=0, le=1)
    """Share of the sampled requests that is compared."""
    per_minute: Annotated[int, Option("paired_per_minute")] = Field(default=60, ge=1)
    """Most requests compared in a minute; of each, one row."""
    duty_cycle: Annotated[float, Option("paired_duty_cycle")] = Field(default=0.05, ge=0.001, le=1)
    """Largest share of time spent comparing."""
    compare_previous: bool = False
    """Without a reference.onnx, compare with the former version in the repository."""
    fetch_bytes: Annotated[int, Option("paired_fetch_mib", unit=MIB)] = Field(default=128 * MIB, ge=1)
    """Activations held at a time to be compared."""
    queue_bytes: Annotated[int, Option("paired_queue_mib", unit=MIB)] = Field(default=32 * MIB, ge=1)
    """Memory for requests that wait to be compared."""
    join_bytes: Annotated[int, Option("join_mib", unit=MIB)] = Field(default=32 * MIB, ge=1)
    """Memory for responses that wait for their requests."""
    join_seconds: float = Field(default=30.0, ge=0.1)
    """How long they wait."""
    join_ids: int = Field(default=1 << 16, ge=1)
    """Ids of requests and responses noted meanwhile."""
    model_bytes: Annotated[int, Option("paired_model_mib", unit=MIB)] = Field(default=1024 * MIB, ge=1)
    """Largest model file loaded as a baseline."""
    holdout_bytes: Annotated[int, Option("holdout_mib", unit=MIB)] = Field(default=256 * MIB, ge=1)
    """Largest holdout.npz, unpacked."""
    holdout_repeat_seconds: float = Field(default=3600.0, ge=1)
    """A holdout's result is sent again so often; the detector's --holdout-seconds has to be longer."""
    kinship_requests: int = Field(default=100, ge=0)
    """Requests after a deployment that the former version runs too, to tell whether the new one is near it."""
    tolerance: Tolerance = Tolerance()
    max_batch: Annotated[int, INTERNAL] = 32
    limits: Annotated[Limits, INTERNAL] = Limits()
    """For the bodies of responses."""
    device: Annotated[Device, INTERNAL] = Device(1)
    """Where replay runs."""
    nice: Annotated[int, INTERNAL] = 10
    """Nice level of the thread."""
