"""What is observed of every model, and what that may cost, as the user states it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from agent.capture.choice import parse_globs
from agent.options import MIB, SECTION, Option
from agent.replay import Device


def _globs(value: Any) -> tuple[str, ...]:
    return parse_globs(value.split() if isinstance(value, str) else value)


def _off(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() == "off" else value


@dataclass(frozen=True, slots=True, config=SECTION)
class CaptureSettings:
    """What is observed of every model, and what that may cost."""

    device: Device
    max_batch: int = Field(default=32, ge=1)
    """Requests replayed at a time."""
    probes: Annotated[tuple[str, ...], BeforeValidator(_globs), Option(metavar="GLOB", multiple=True)] = ()
    """Observe only layers of such names; !GLOB leaves out. Repeat, or part with commas."""
    overhead_budget: Annotated[
        float | None,
        Field(ge=0, le=100),
        BeforeValidator(_off),
        AfterValidator(lambda share: share or None),
        Option(metavar="SHARE|OFF"),
    ] = 0.10
    """Most that observing may add to a plain run, as a share; over it, groups of layers take turns."""
    calibration_seconds: float = Field(default=10.0, ge=0.1)
    """Longest timing of a model at load."""
    calibration_extent: int = Field(default=1, ge=1)
    """Extent of free axes other than the batch while timing, such as a usual sequence length."""
    session_memory: Annotated[int, Option("session_memory_mib", unit=MIB)] = Field(default=1024 * MIB, ge=0)
    """Weights that the sessions of all groups may hold at once; over it, they are built in turn."""
    nice: int = Field(default=10, ge=0, le=19)
    """Nice level of replay's threads."""
