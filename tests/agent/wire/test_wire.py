"""What goes on the wire comes back the same, and damaged messages are named, never half-read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

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
    for name in ("n", "active", "nonfinite", "fraction_sum", "fraction_sq_sum", "mean", "m2", "min", "max"):
        np.testing.assert_array_equal(getattr(a.summary, name), getattr(b.summary, name))
    assert a.summary.mean_histogram.same_as(b.summary.mean_histogram)
    assert a.summary.max_histogram.same_as(b.summary.max_histogram)
    means, maxima = wire.decode_histograms(wire.encode_histograms(b.summary))
    assert means.same_as(b.summary.mean_histogram)
    assert maxima.same_as(b.summary.max_histogram)


def test_messages_of_the_first_schema_are_read() -> None:
    raw = pb.Envelope.FromString(wire.encode(envelope(summarise(np.ones((5, 3))))))
    raw.schema_version = 1
    assert isinstance(wire.decode(raw.SerializeToString()).body, wire.Window)


def test_deployments_survive_the_round_trip() -> None:
    body = wire.Deployment(
        5, (PROBE,), (wire.NotProbed("n", "Tanh", "Tanh is not a rectifier"),), "CPUExecutionProvider"
    )
    sent = wire.Envelope("pod-1", 1, 1, "digits", "2", "00", body)
    assert wire.decode(wire.encode(sent)) == sent


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
        (lambda m: m.ClearField("window"), "neither a window nor a deployment nor a comparison"),
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
    + [(name, value) for name in ("fraction_sum", "fraction_sq_sum") for value in (NAN, INF)]
    + [(name, value) for name in ("min", "max") for value in (NAN, 1e300)],
)
def test_a_moment_beyond_all_values_costs_its_channel_only(name: str, value: float) -> None:
    """As agents sent it before they knew of a largest value."""
    sent = summarise(np.ones((5, 3)))
    raw = pb.Envelope.FromString(wire.encode(envelope(sent)))
    getattr(raw.window.probes[0], name)[1] = value
    body = wire.decode(raw.SerializeToString()).body
    assert isinstance(body, wire.Window)
    got = body.probes[0].summary
    assert got.nonfinite.tolist() == [0, 5, 0]
    assert got.mean_histogram.totals().tolist() == got.max_histogram.totals().tolist() == [5, 0, 5]
    assert got.active.tolist() == [5, 0, 5]
    assert (got.mean.tolist(), got.m2.tolist()) == ([1, 0, 1], [0, 0, 0])
    assert (got.min[1], got.max[1]) == (np.inf, -np.inf)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_message_raises_wire_errors_only(data: st.DataObject) -> None:
    """A changed byte may make another true message, never anything but a WireError."""
    message = bytearray(wire.encode(envelope(summarise(np.ones((5, 3))))))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(wire.WireError):
        wire.decode(bytes(message))
