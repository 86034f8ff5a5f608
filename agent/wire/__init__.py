"""The contract between agents and detectors: message types and their protobuf encoding."""

from agent.wire.codec import (
    SCHEMA_VERSION,
    WireError,
    decode,
    decode_histograms,
    encode,
    encode_histograms,
    estimated_size,
)
from agent.wire.messages import Deployment, Envelope, NotProbed, Probe, ProbeKind, ProbeWindow, Window

__all__ = [
    "SCHEMA_VERSION",
    "Deployment",
    "Envelope",
    "NotProbed",
    "Probe",
    "ProbeKind",
    "ProbeWindow",
    "Window",
    "WireError",
    "decode",
    "decode_histograms",
    "encode",
    "encode_histograms",
    "estimated_size",
]
