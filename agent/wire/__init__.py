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
from agent.wire.kinship import estimated_layer_size, merge_layers
from agent.wire.messages import (
    KINSHIP_CHANNELS,
    BaselineKind,
    Behind,
    Comparison,
    Deployment,
    Envelope,
    Heartbeat,
    HeartbeatStatus,
    Kinship,
    LayerKinship,
    NotProbed,
    Probe,
    ProbeComparison,
    ProbeKind,
    ProbeWindow,
    Window,
)

__all__ = [
    "KINSHIP_CHANNELS",
    "SCHEMA_VERSION",
    "BaselineKind",
    "Behind",
    "Comparison",
    "Deployment",
    "Envelope",
    "Heartbeat",
    "HeartbeatStatus",
    "Kinship",
    "LayerKinship",
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
    "estimated_layer_size",
    "estimated_size",
    "merge",
    "merge_layers",
    "merge_probes",
    "probes_only",
    "sqnr_db",
]
