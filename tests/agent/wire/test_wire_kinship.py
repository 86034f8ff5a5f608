"""Kinship messages: what goes on the wire comes back the same, adds up exactly, and damage is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from agent import wire
from agent.paired.kinship_sums import layer_sums
from agent.wire import reluscope_pb2 as pb

SUMS = ("served", "former", "served_sq", "former_sq", "product", "neighbour_product")


def layer(name: str = "relu1", n: int = 25, channels: int = 3, seed: int = 0) -> wire.LayerKinship:
    rng = np.random.default_rng(seed)
    found = layer_sums(name, rng.normal(size=(n, channels)), rng.normal(size=(n, channels)))
    assert found is not None
    return found


def envelope(*layers: wire.LayerKinship) -> wire.Envelope:
    return wire.Envelope("pod-1", 3, 7, "digits", "2", "ab" * 32, wire.Kinship(60_000, "1", "cd" * 32, layers))


def test_a_kinship_survives_the_round_trip() -> None:
    sent = envelope(layer(), layer("relu2", channels=64))
    got = wire.decode(wire.encode(sent))
    assert isinstance(got.body, wire.Kinship)
    assert isinstance(sent.body, wire.Kinship)
    assert (got.body.at_ms, got.body.former_version, got.body.former_digest) == (60_000, "1", "cd" * 32)
    for one, other in zip(got.body.layers, sent.body.layers, strict=True):
        assert (one.name, one.n, one.broken) == (other.name, other.n, other.broken)
        for name in SUMS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len(wire.encode(sent)) < 200 + sum(wire.estimated_layer_size(one) for one in sent.body.layers)


def test_parts_add_up_to_the_whole_and_unlike_ones_are_refused() -> None:
    rng = np.random.default_rng(1)
    served, former = rng.integers(0, 99, (2, 60, 5)).astype(np.float64)
    served[7, 2] = np.inf
    whole = layer_sums("relu", served, former)
    parts = [layer_sums("relu", served[at], former[at]) for at in (slice(0, 11), slice(11, 60))]
    assert whole is not None
    assert parts[0] is not None
    assert parts[1] is not None
    added = wire.merge_layers(parts[1], parts[0])
    assert (added.n, added.broken) == (whole.n, whole.broken) == (59, 1)
    for name in SUMS:
        np.testing.assert_array_equal(getattr(added, name), getattr(whole, name))
    with pytest.raises(ValueError, match="5 and 3 channels"):
        wire.merge_layers(added, layer("relu"))
    with pytest.raises(ValueError, match="relu is not layer relu1"):
        wire.merge_layers(added, layer())


Damage = Callable[[pb.Kinship], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda k: setattr(k, "at_unix_ms", 0), "a kinship at 0 ms"),
        (lambda k: setattr(k, "former_digest", ""), "former_digest is empty"),
        (lambda k: setattr(k.layers[0], "name", ""), "no name"),
        (lambda k: setattr(k.layers[0], "n", 0), "a kinship of 0 requests"),
        (lambda k: k.layers[0].served.append(1), r"sums of \[3, 4\] channels"),
        (lambda k: k.layers.append(k.layers[0]), "two layers of one name"),
        (lambda k: k.layers[0].product.__setitem__(0, float("nan")), "not finite"),
        (lambda k: k.layers[0].former_sq.__setitem__(0, -1.0), "negative"),
        (lambda k: [getattr(k.layers[0], name).extend([1.0] * 62) for name in SUMS], r"not of 1 to 64"),
    ],
)
def test_damage_is_named(damage: Damage, message: str) -> None:
    raw = pb.Envelope.FromString(wire.encode(envelope(layer())))
    damage(raw.kinship)
    with pytest.raises(wire.WireError, match=message):
        wire.decode(raw.SerializeToString())
