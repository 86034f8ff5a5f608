"""The plain data types that agents and detectors exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agent.summary import Summary

ProbeKind = Literal["input", "activation", "output"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A tensor chosen for observation."""

    name: str
    """The layer's name: the node's, or the graph input's or output's."""
    op: str
    """ONNX operator, or "Input" or "Output"."""
    tensor: str
    channels: int | None
    """None where the model does not say before the first request."""
    axis: int
    """Position of the channel axis in the tensor."""
    kind: ProbeKind
    position: int
    """Rank in graph order: inputs first, outputs last."""
    exact_zero: bool
    """Whether the activation can be exactly zero, so that "dead" means what it says."""


@dataclass(frozen=True, slots=True)
class NotProbed:
    """A tensor that is not observed, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeWindow:
    """One probe's summary within a window."""

    probe: Probe
    summary: Summary


@dataclass(frozen=True, slots=True)
class Window:
    """Summaries of the requests that arrived in [start_ms, end_ms), Unix milliseconds."""

    start_ms: int
    end_ms: int
    probes: tuple[ProbeWindow, ...]


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model version starts to serve in one agent's pod."""

    at_ms: int
    probes: tuple[Probe, ...]
    not_probed: tuple[NotProbed, ...]
    provider: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on Kafka; (agent_id, boot_epoch, seq) names it for ever."""

    agent_id: str
    boot_epoch: int
    seq: int
    model: str
    version: str
    digest: str
    body: Window | Deployment

    @property
    def key(self) -> str:
        """The Kafka key: one model version's messages share a partition."""
        return f"{self.model}@{self.version}"
