"""Protobuf encoding of envelopes and histograms. Decoding checks everything that merging relies on.

A message that is no protobuf, of a newer schema, or with arrays that do not fit together raises `WireError`, whose text
says which field is wrong; nothing half-decoded gets past this module. Moments that are not finite cost their channel
only: its requests count as not finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from agent.summary import Histogram, Summary, usable
from agent.summary.histogram import MAX_SCALE, MIN_SCALE, Ints
from agent.wire import reluscope_pb2 as pb
from agent.wire.comparison_codec import comparison_in, comparison_out
from agent.wire.fields import MAX_CHANNELS, MAX_COUNT, WireError, extend, integers, probe_in, probe_out
from agent.wire.messages import Comparison, Deployment, Envelope, NotProbed, ProbeWindow, Window

SCHEMA_VERSION = 2

_EXPONENTS = 1100  # above the magnitude of any double's exponent
_COUNTS = ("active", "nonfinite")
_VALUES = ("fraction_sum", "fraction_sq_sum", "mean", "m2", "min", "max")


def encode(envelope: Envelope) -> bytes:
    """The bytes of one Kafka message."""
    message = pb.Envelope(
        schema_version=SCHEMA_VERSION,
        agent_id=envelope.agent_id,
        boot_epoch=envelope.boot_epoch,
        seq=envelope.seq,
        model=envelope.model,
        version=envelope.version,
        digest=envelope.digest,
    )
    body = envelope.body
    if isinstance(body, Window):
        message.window.start_unix_ms, message.window.end_unix_ms = body.start_ms, body.end_ms
        message.window.probes.extend(_summary_out(item) for item in body.probes)
    elif isinstance(body, Comparison):
        message.comparison.CopyFrom(comparison_out(body))
    else:
        message.deployment.at_unix_ms, message.deployment.provider = body.at_ms, body.provider
        message.deployment.probes.extend(probe_out(probe) for probe in body.probes)
        message.deployment.not_probed.extend(
            pb.NotProbed(name=item.name, op=item.op, reason=item.reason) for item in body.not_probed
        )
    return message.SerializeToString()


def decode(data: bytes) -> Envelope:
    """The envelope in ``data``; raises WireError where it is damaged, implausible or of a newer schema."""
    message = pb.Envelope()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"not a reluscope message: {error}") from error
    if message.schema_version == 0:
        raise WireError("not a reluscope message: no schema_version")
    if message.schema_version > SCHEMA_VERSION:
        raise WireError(
            f"schema_version {message.schema_version} is newer than {SCHEMA_VERSION}: "
            "upgrade the detector before the agents"
        )
    for name in ("agent_id", "model", "version"):
        if not getattr(message, name):
            raise WireError(f"{name} is empty")
    kind = message.WhichOneof("body")
    if kind is None:
        raise WireError("the message has neither a window nor a deployment nor a comparison")
    body: Window | Deployment | Comparison
    if kind == "window":
        body = _window_in(message.window)
    elif kind == "comparison":
        body = comparison_in(message.comparison)
    else:
        body = _deployment_in(message.deployment)
    return Envelope(
        message.agent_id,
        message.boot_epoch,
        message.seq,
        message.model,
        message.version,
        message.digest,
        body,
    )


def estimated_size(summary: Summary) -> int:
    """About how many bytes a probe takes in a message, without encoding it; seldom below the true size."""
    buckets = len(summary.mean_histogram.count) + len(summary.max_histogram.count)
    return 200 + 80 * summary.channels + 4 * buckets


def encode_histograms(summary: Summary) -> bytes:
    """Both histograms of a summary, for storage beside its arrays."""
    return pb.ProbeSummary(
        mean_histogram=_histogram_out(summary.mean_histogram), max_histogram=_histogram_out(summary.max_histogram)
    ).SerializeToString()


def decode_histograms(data: bytes) -> tuple[Histogram, Histogram]:
    """The inverse of `encode_histograms`: (of pooled means, of pooled maxima)."""
    message = pb.ProbeSummary()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"not a stored pair of histograms: {error}") from error
    channels = len(message.mean_histogram.zeros)
    return _histogram_in(message.mean_histogram, channels), _histogram_in(message.max_histogram, channels)


def _deployment_in(message: pb.Deployment) -> Deployment:
    return Deployment(
        at_ms=message.at_unix_ms,
        probes=tuple(probe_in(probe) for probe in message.probes),
        not_probed=tuple(NotProbed(item.name, item.op, item.reason) for item in message.not_probed),
        provider=message.provider,
    )


def _window_in(message: pb.Window) -> Window:
    if not 0 < message.start_unix_ms < message.end_unix_ms:
        raise WireError(f"window [{message.start_unix_ms}, {message.end_unix_ms}) ms is no span of time")
    return Window(message.start_unix_ms, message.end_unix_ms, tuple(_summary_in(item) for item in message.probes))


def _summary_out(item: ProbeWindow) -> pb.ProbeSummary:
    summary = item.summary
    arrays = {name: getattr(summary, name).tolist() for name in _COUNTS + _VALUES}
    return pb.ProbeSummary(
        probe=probe_out(item.probe),
        n=summary.n,
        mean_histogram=_histogram_out(summary.mean_histogram),
        max_histogram=_histogram_out(summary.max_histogram),
        **arrays,
    )


def _summary_in(message: pb.ProbeSummary) -> ProbeWindow:
    probe = probe_in(message.probe)
    channels = len(message.active)
    if not 0 < channels <= MAX_CHANNELS:
        raise WireError(f"probe {probe.name}: {channels} channels")
    for name in _COUNTS + _VALUES:
        if len(getattr(message, name)) != channels:
            raise WireError(f"probe {probe.name}: {name} has {len(getattr(message, name))} of {channels} entries")
    if message.n > MAX_COUNT:
        raise WireError(f"probe {probe.name}: a count exceeds 63 bits")
    counts = {name: integers(getattr(message, name)) for name in _COUNTS}
    values = {name: np.array(getattr(message, name), np.float64) for name in _VALUES}
    if any(((array < 0) | (array > message.n)).any() for array in counts.values()):
        raise WireError(f"probe {probe.name}: a channel counts more requests than the window's {message.n}")
    histograms = [_histogram_in(part, channels) for part in (message.mean_histogram, message.max_histogram)]
    finite = message.n - counts["nonfinite"]
    if any(not np.array_equal(histogram.totals(), finite) for histogram in histograms):
        raise WireError(f"probe {probe.name}: a histogram's counts do not add up to the finite requests")
    arrays: dict[str, Any] = {**counts, **values}
    summary = Summary(n=message.n, mean_histogram=histograms[0], max_histogram=histograms[1], **arrays)
    return ProbeWindow(probe, usable(summary))


def _histogram_out(histogram: Histogram) -> pb.Histogram:
    message = pb.Histogram(scale=histogram.scale, zeros=histogram.zeros.tolist())
    for sign, buckets in ((1, message.positive), (-1, message.negative)):
        kept = histogram.sign == sign
        channel, index = histogram.channel[kept], histogram.index[kept]
        deltas = np.diff(index, prepend=0)
        starts = np.flatnonzero(np.diff(channel, prepend=-1))
        deltas[starts] = index[starts]
        if len(channel):
            extend(buckets.row_lengths, np.bincount(channel, minlength=histogram.channels))
            extend(buckets.index, deltas)
            extend(buckets.count, histogram.count[kept])
    return message


def _histogram_in(message: pb.Histogram, channels: int) -> Histogram:
    if not MIN_SCALE <= message.scale <= MAX_SCALE:
        raise WireError(f"histogram scale {message.scale} is outside [{MIN_SCALE}, {MAX_SCALE}]")
    if len(message.zeros) != channels:
        raise WireError(f"a histogram has {len(message.zeros)} of {channels} channels")
    parts = [_buckets_in(message.negative, channels, -1), _buckets_in(message.positive, channels, 1)]
    channel, sign, index, count = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if (np.abs(index) > _EXPONENTS * 2.0**message.scale + 1).any():
        raise WireError("a histogram has a bucket beyond what a double holds")
    order = np.lexsort((sign * index, sign, channel))
    zeros = integers(message.zeros)
    return Histogram(message.scale, zeros, channel[order], sign[order], index[order], count[order])


def _buckets_in(message: pb.Buckets, channels: int, sign: int) -> tuple[Ints, Ints, Ints, Ints]:
    lengths, deltas, count = (integers(part) for part in (message.row_lengths, message.index, message.count))
    if len(lengths) not in (0, channels) or len(deltas) != len(count) or lengths.sum() != len(count):
        raise WireError("a histogram's rows, indices and counts do not fit together")
    if (count <= 0).any():
        raise WireError("a histogram has an empty bucket")
    channel = np.repeat(np.arange(len(lengths)), lengths)
    running = np.cumsum(deltas)
    starts = np.cumsum(lengths) - lengths
    offsets = np.where(starts > 0, running[np.maximum(starts - 1, 0)], 0) if len(running) else np.zeros_like(starts)
    index = running - np.repeat(offsets, lengths)
    return channel.astype(np.int64), np.full(len(count), sign, np.int64), index.astype(np.int64), count
