"""The contract between agents and detectors: message types and their protobuf encoding."""

from agent.wire.codec import (
    SCHEMA_VERSION,
    decode,
    decode_histograms,
    encode,
    encode_histograms,
    estimated_size,
)
from agent.wire.comparison import cosine, merge, merge_probes, probes_only, sqnr_db
from agent.wire.comparison_codec import estimated_comparison_size
from agent.wire.fields import WireError
from agent.wire.messages import (
    BaselineKind,
    Comparison,
    Deployment,
    Envelope,
    Heartbeat,
    HeartbeatStatus,
    NotProbed,
    Probe,
    ProbeComparison,
    ProbeKind,
    ProbeWindow,
    Window,
)

__all__ = [
    "SCHEMA_VERSION",
    "BaselineKind",
    "Comparison",
    "Deployment",
    "Envelope",
    "Heartbeat",
    "HeartbeatStatus",
    "NotProbed",
    "Probe",
    "ProbeComparison",
    "ProbeKind",
    "ProbeWindow",
    "Window",
    "WireError",
    "cosine",
    "decode",
    "decode_histograms",
    "encode",
    "encode_histograms",
    "estimated_comparison_size",
    "estimated_size",
    "merge",
    "merge_probes",
    "probes_only",
    "sqnr_db",
]
