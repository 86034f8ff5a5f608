"""The plain data types that agents and detectors exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.summary import Summary

ProbeKind = Literal["input", "activation", "output"]
BaselineKind = Literal["reference_model", "cpu_provider", "served_response", "holdout"]
HeartbeatStatus = Literal["serving", "stopped", "refused"]
KINSHIP_CHANNELS = 64
"""Most channels of a layer that a kinship speaks of."""


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
class Heartbeat:
    """What one agent does with one model version; counts are of requests since the agent's start."""

    at_ms: int
    """The agent's clock as the message is handed to Kafka, Unix milliseconds."""
    status: HeartbeatStatus
    """ "stopped" is a farewell: the agent serves the version no more. "refused": it cannot load it."""
    interval_ms: int
    """When the next is due."""
    window_ms: int
    sample_rate: float
    """As configured, 0 to 1; budgets may lower it."""
    requests: int = 0
    sampled: int = 0
    replayed: int = 0
    rejected: int = 0
    """With content that cannot be read or run."""
    dropped: int = 0
    """Lost for want of room or time."""
    held: int = 0
    """Observed, and held back for a larger group, told of later or not."""
    waiting_since_ms: int | None = None
    """Start of the oldest window that the broker has not acknowledged; None where it has all."""


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """How a probe's signal, power and noise are spread over its requests; both of shape (3,)."""

    requests: NDArray[np.int64]
    """Requests that add to the sum."""
    squares: NDArray[np.float64]
    """Sum of the squares of what each request adds."""


@dataclass(frozen=True, slots=True, eq=False)
class ProbeComparison:
    """What differs between the served side and a baseline at one probe, summed over requests and elements."""

    probe: Probe
    """The served side's."""
    n: int
    """Requests."""
    elements: int
    """Element pairs that are finite on both sides; the sums below are over these."""
    signal: float
    """Sum of squares of the baseline."""
    power: float
    """Sum of squares of the served side."""
    noise: float
    """Sum of squares of the difference."""
    cross: float
    """Sum of products."""
    max_abs_error: float
    mismatched: int
    """Requests with an element beyond tolerance."""
    nonfinite: int
    """Requests where exactly one side has a NaN or an infinity at some element."""
    only_served_active: NDArray[np.int64]
    """Shape (channels,): requests with any positive element on the served side only; empty without channels."""
    only_baseline_active: NDArray[np.int64]
    behind: Behind | None = None
    """For the agent's decision how finely the sums may be told; in no message."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The same requests, run on the served side and on a baseline."""

    start_ms: int
    """Window of the requests, Unix milliseconds; of a holdout: when it ran."""
    end_ms: int
    kind: BaselineKind
    baseline: str
    """ "reference.onnx", a version, "CPUExecutionProvider", "response" or "holdout.npz"."""
    baseline_digest: str
    """sha256 of the file behind it, empty where there is none."""
    provider: str
    """onnxruntime execution provider of the served side."""
    n: int
    """Requests compared; 0 in all but the first part of a comparison that was split by probe."""
    top1_n: int = 0
    """Requests with a top-1 class on both sides."""
    top1_agree: int = 0
    accuracy_n: int = 0
    """Requests with a label; a holdout's only."""
    served_correct: int = 0
    baseline_correct: int = 0
    """Of the ``baseline_n`` requests that the reference model ran too."""
    baseline_n: int = 0
    only_served_correct: int = 0
    only_baseline_correct: int = 0
    mismatched: int = 0
    """Requests with an output beyond tolerance."""
    probes: tuple[ProbeComparison, ...] = ()
    """In graph order; outputs of the model are probes too."""
    reference: str = ""
    """What a holdout ran beside the served model: "reference.onnx" or a version; empty where it ran alone."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerKinship:
    """Sums over requests of the pooled means of some of a layer's channels, in a version and in the one it replaced.

    Arrays have shape (channels,), with up to `KINSHIP_CHANNELS` of the layer's channels, evenly spread.
    """

    name: str
    n: int
    """Requests that are finite on both sides; the sums are over these."""
    served: NDArray[np.float64]
    former: NDArray[np.float64]
    served_sq: NDArray[np.float64]
    former_sq: NDArray[np.float64]
    product: NDArray[np.float64]
    """Served times former of the same channel."""
    neighbour_product: NDArray[np.float64]
    """Served times former of the next of these channels, cyclically: what unrelated channels have in common."""
    broken: int = 0
    """Requests that are finite on the former side only."""


@dataclass(frozen=True, slots=True)
class Kinship:
    """How alike a version and the one that it replaced are, on the same requests."""

    at_ms: int
    former_version: str
    former_digest: str
    layers: tuple[LayerKinship, ...]
    """Activations only."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on Kafka; (agent_id, boot_epoch, seq) names it for ever, heartbeats apart from all others."""

    agent_id: str
    boot_epoch: int
    seq: int
    model: str
    version: str
    digest: str
    body: Window | Deployment | Comparison | Heartbeat | Kinship

    @property
    def start_ms(self) -> int:
        """What the message speaks of begins here, by its agent's clock."""
        return self.body.start_ms if isinstance(self.body, Window | Comparison) else self.body.at_ms

    @property
    def end_ms(self) -> int:
        """And ends here: for a window its end, for what has no span the moment itself."""
        return self.body.end_ms if isinstance(self.body, Window | Comparison) else self.body.at_ms

    @property
    def key(self) -> str:
        """The Kafka key: one model version's messages share a partition."""
        return f"{self.model}@{self.version}"
