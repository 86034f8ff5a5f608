"""The bounds of capture, as the command line gives them."""

from __future__ import annotations

from dataclasses import dataclass

from agent.replay import Device


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """What is observed of every model, and what that may cost."""

    device: Device
    max_batch: int = 32
    """Requests replayed at a time."""
    probes: tuple[str, ...] = ()
    """Globs of probe names, ``!`` before those that are left out; empty for all probes."""
    overhead_budget: float | None = None
    """Largest share that pooling may add to a plain run; None for no limit, and no timing at load."""
    calibration_seconds: float = 10.0
    """Longest time that the timing at load takes, for one model version."""
    calibration_extent: int = 1
    """Extent of free axes other than the requests, while timing: a typical sequence length, say."""
    session_memory: int = 1 << 30
    """Bytes of weights that the sessions of all groups may hold together; else they are built in turn."""
    nice: int = 10
    """Added to the nice level of the threads that replay, so that they yield to the server in the same pod."""
