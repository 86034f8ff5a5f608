"""What goes on the wire comes back the same, and damaged messages are named, never half-read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import wire
from agent.summary import Summary
from agent.wire import reluscope_pb2 as pb
from tests.agent.summary.test_summary import pooled, summarise

PROBE = wire.Probe("conv1_relu", "Relu", "t1", 3, 1, "activation", 1, True)


def envelope(summary: Summary) -> wire.Envelope:
    window = wire.Window(60_000, 120_000, (wire.ProbeWindow(PROBE, summary),))
    return wire.Envelope("pod-1", 3, 7, "digits", "1", "ab" * 32, window)


@given(pooled())
def test_windows_survive_the_round_trip(values: np.ndarray) -> None:
    sent = envelope(summarise(values))
    got = wire.decode(wire.encode(sent))
    assert (got.agent_id, got.boot_epoch, got.seq, got.key, got.digest) == ("pod-1", 3, 7, "digits@1", "ab" * 32)
    assert isinstance(got.body, wire.Window)
    assert isinstance(sent.body, wire.Window)
    a, b = got.body.probes[0], sent.body.probes[0]
    assert a.probe == PROBE
    counted, extremes = ("n", "active", "nonfinite"), ("lowest_mean", "highest_max")
    for name in (*counted, "fraction_sum", "fraction_sq_sum", "mean", "m2", *extremes):
        np.testing.assert_array_equal(getattr(a.summary, name), getattr(b.summary, name))
    assert a.summary.mean_histogram.same_as(b.summary.mean_histogram)
    assert a.summary.max_histogram.same_as(b.summary.max_histogram)
    means, maxima = wire.decode_histograms(wire.encode_histograms(b.summary))
    assert means.same_as(b.summary.mean_histogram)
    assert maxima.same_as(b.summary.max_histogram)


@pytest.mark.parametrize("schema_version", [1, 2])
def test_messages_of_former_schemas_are_read(schema_version: int) -> None:
    raw = pb.Envelope.FromString(wire.encode(envelope(summarise(np.ones((5, 3))))))
    raw.schema_version = schema_version
    assert isinstance(wire.decode(raw.SerializeToString()).body, wire.Window)


def test_extremes_are_not_sent_and_those_of_older_agents_are_passed_over() -> None:
    values = np.array([[1.7, 0.0, -3.3]])
    raw = pb.Envelope.FromString(wire.encode(envelope(summarise(values))))
    [probe] = raw.window.probes
    assert not len(probe.min)
    assert not len(probe.max)
    raw.schema_version = 2
    probe.min.extend(values[0])
    probe.max.extend(values[0])
    got = wire.decode(raw.SerializeToString())
    assert isinstance(got.body, wire.Window)
    summary = got.body.probes[0].summary
    np.testing.assert_allclose(summary.highest_max, [2 ** (13 / 16), 0.0, -(2 ** (27 / 16))])
    np.testing.assert_allclose(summary.lowest_mean, [2 ** (12 / 16), 0.0, -(2 ** (28 / 16))])


def test_deployments_survive_the_round_trip() -> None:
    body = wire.Deployment(
        5, (PROBE,), (wire.NotProbed("n", "Tanh", "Tanh is not a rectifier"),), "CPUExecutionProvider"
    )
    sent = wire.Envelope("pod-1", 1, 1, "digits", "2", "00", body)
    assert wire.decode(wire.encode(sent)) == sent


def heartbeat(**fields: Any) -> wire.Heartbeat:
    values: dict[str, Any] = {
        "at_ms": 5, "status": "serving", "interval_ms": 30_000, "window_ms": 60_000, "sample_rate": 0.05,
        "requests": 100, "sampled": 5, "replayed": 3, "rejected": 1, "dropped": 1, "waiting_since_ms": 4, "held": 2,
    }  # fmt: skip
    return wire.Heartbeat(**values | fields)


@pytest.mark.parametrize("status", ["serving", "stopped", "refused"])
@pytest.mark.parametrize("waiting", [None, 60_000])
def test_heartbeats_survive_the_round_trip(status: str, waiting: int | None) -> None:
    body = heartbeat(status=status, waiting_since_ms=waiting)
    sent = wire.Envelope("pod-1", 1, 1, "digits", "2", "", body)
    assert wire.decode(wire.encode(sent)) == sent


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("status", 0, "unknown status 0"),
        ("status", 9, "unknown status 9"),
        ("at_unix_ms", 0, "before 1970"),
        ("waiting_since_unix_ms", -1, "before 1970"),
        ("interval_ms", 0, "no interval"),
        ("window_ms", 0, "length of windows"),
        ("sample_rate", 1.1, "no share"),
        ("sample_rate", float("nan"), "no share"),
        ("requests", 1 << 63, "63 bits"),
    ],
)
def test_damaged_heartbeats_are_named(field: str, value: float, text: str) -> None:
    raw = pb.Envelope.FromString(wire.encode(wire.Envelope("pod-1", 1, 1, "digits", "2", "", heartbeat())))
    setattr(raw.heartbeat, field, value)
    with pytest.raises(wire.WireError, match=text):
        wire.decode(raw.SerializeToString())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_wire_errors_only(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(data)


Damage = Callable[[pb.Envelope], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: setattr(m, "schema_version", 99), "newer than"),
        (lambda m: setattr(m, "model", ""), "model is empty"),
        (lambda m: m.ClearField("window"), "no window, deployment, comparison, heartbeat or kinship"),
        (lambda m: setattr(m.window, "end_unix_ms", 0), "no span of time"),
        (lambda m: m.window.probes[0].active.append(1), "entries"),
        (lambda m: m.window.probes[0].active.__setitem__(0, 999), "more requests than"),
        (lambda m: setattr(m.window.probes[0], "n", 2**63), "63 bits"),
        (
            lambda m: m.window.probes[0].mean_histogram.positive.index.__setitem__(0, 20_000),
            "beyond what a double holds",
        ),
        (lambda m: m.window.probes[0].mean_histogram.zeros.__setitem__(0, 50), "do not add up"),
        (lambda m: setattr(m.window.probes[0].mean_histogram, "scale", 99), "scale 99"),
        (lambda m: m.window.probes[0].mean_histogram.positive.count.append(1), "do not fit together"),
        (lambda m: m.window.probes[0].active.__setitem__(0, 2**63), "63 bits"),
        (lambda m: setattr(m.window.probes[0].probe, "kind", 9), "kind 9"),
    ],
)
def test_damage_is_named(damage: Damage, message: str) -> None:
    raw = pb.Envelope.FromString(wire.encode(envelope(summarise(np.ones((5, 3))))))
    damage(raw)
    with pytest.raises(wire.WireError, match=message):
        wire.decode(raw.SerializeToString())


def test_truncation_never_passes_silently_as_the_same_message() -> None:
    data = wire.encode(envelope(summarise(np.ones((5, 3)))))
    for cut in range(len(data)):
        with pytest.raises(wire.WireError):
            wire.decode(data[:cut])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("mean", "m2") for value in (NAN, INF, 1e300)]
    + [(name, value) for name in ("fraction_sum", "fraction_sq_sum") for value in (NAN, INF)],
)
def test_a_moment_beyond_all_values_costs_its_channel_only(name: str, value: float) -> None:
    """As agents sent it before they knew of a largest value."""
    sent = summarise(np.ones((5, 3)))
    raw = pb.Envelope.FromString(wire.encode(envelope(sent)))
    getattr(raw.window.probes[0], name)[1] = value
    assert_lost(raw)


@pytest.mark.parametrize("histogram", ["mean_histogram", "max_histogram"])
def test_a_bucket_beyond_all_values_costs_its_channel_only(histogram: str) -> None:
    raw = pb.Envelope.FromString(wire.encode(envelope(summarise(np.ones((5, 3))))))
    buckets = getattr(raw.window.probes[0], histogram).positive
    assert buckets.row_lengths == [1, 1, 1]
    buckets.index[1] = 16 * 290  # of 2^290, some 1e87
    assert_lost(raw)


def assert_lost(raw: pb.Envelope) -> None:
    """Of the five requests the second channel knows that they are not finite, and nothing else."""
    body = wire.decode(raw.SerializeToString()).body
    assert isinstance(body, wire.Window)
    got = body.probes[0].summary
    assert got.nonfinite.tolist() == [0, 5, 0]
    assert got.mean_histogram.totals().tolist() == got.max_histogram.totals().tolist() == [5, 0, 5]
    assert got.active.tolist() == [5, 0, 5]
    assert (got.mean.tolist(), got.m2.tolist()) == ([1, 0, 1], [0, 0, 0])
    assert (got.lowest_mean[1], got.highest_max[1]) == (np.inf, -np.inf)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_message_raises_wire_errors_only(data: st.DataObject) -> None:
    """A changed byte may make another true message, never anything but a WireError."""
    message = bytearray(wire.encode(envelope(summarise(np.ones((5, 3))))))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(wire.WireError):
        wire.decode(bytes(message))
