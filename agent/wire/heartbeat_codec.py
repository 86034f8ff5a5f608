"""Protobuf encoding of heartbeats. Decoding checks what the detector's judgement of an agent relies on."""

from __future__ import annotations

from agent.wire import reluscope_pb2 as pb
from agent.wire.fields import WireError
from agent.wire.messages import Heartbeat, HeartbeatStatus

_STATUSES: dict[HeartbeatStatus, pb.HeartbeatStatus.ValueType] = {
    "serving": pb.SERVING,
    "stopped": pb.STOPPED,
    "refused": pb.REFUSED,
}
_STATUS_NAMES: dict[int, HeartbeatStatus] = {number: status for status, number in _STATUSES.items()}
_COUNTS = ("requests", "sampled", "replayed", "rejected", "dropped", "held")
_MOST = (1 << 63) - 1


def heartbeat_out(body: Heartbeat) -> pb.Heartbeat:
    """The message of a heartbeat."""
    return pb.Heartbeat(
        at_unix_ms=body.at_ms,
        status=_STATUSES[body.status],
        interval_ms=body.interval_ms,
        window_ms=body.window_ms,
        sample_rate=body.sample_rate,
        waiting_since_unix_ms=body.waiting_since_ms or 0,
        **{name: getattr(body, name) for name in _COUNTS},
    )


def heartbeat_in(message: pb.Heartbeat) -> Heartbeat:
    """The inverse of `heartbeat_out`; raises WireError."""
    status = _STATUS_NAMES.get(message.status)
    if status is None:
        raise WireError(f"a heartbeat has the unknown status {message.status}")
    if message.at_unix_ms <= 0 or message.waiting_since_unix_ms < 0:
        raise WireError("a heartbeat lies before 1970")
    if not message.interval_ms or not message.window_ms:
        raise WireError("a heartbeat has no interval or no length of windows")
    if not 0.0 <= message.sample_rate <= 1.0:
        raise WireError(f"a heartbeat's sample_rate {message.sample_rate} is no share from 0 to 1")
    counts = {name: getattr(message, name) for name in _COUNTS}
    if max(counts.values()) > _MOST:
        raise WireError("a heartbeat's count exceeds 63 bits")
    return Heartbeat(
        at_ms=message.at_unix_ms,
        status=status,
        interval_ms=message.interval_ms,
        window_ms=message.window_ms,
        sample_rate=message.sample_rate,
        waiting_since_ms=message.waiting_since_unix_ms or None,
        **counts,
    )
