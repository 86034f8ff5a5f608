"""Kinship messages: their algebra, which is addition, and their protobuf encoding."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent.wire import reluscope_pb2 as pb
from agent.wire.fields import WireError
from agent.wire.messages import KINSHIP_CHANNELS, Kinship, LayerKinship

_SUMS = ("served", "former", "served_sq", "former_sq", "product", "neighbour_product")
_MOST = (1 << 63) - 1


def merge_layers(a: LayerKinship, b: LayerKinship) -> LayerKinship:
    """Both together; raises ValueError where the names or the numbers of channels differ."""
    if a.name != b.name:
        raise ValueError(f"layer {a.name} is not layer {b.name}")
    if len(a.served) != len(b.served):
        raise ValueError(f"layer {a.name} has {len(a.served)} and {len(b.served)} channels in two kinships")
    sums = {name: getattr(a, name) + getattr(b, name) for name in _SUMS}
    return LayerKinship(a.name, a.n + b.n, **sums, broken=a.broken + b.broken)


def estimated_layer_size(one: LayerKinship) -> int:
    """About how many bytes a layer takes in a message, without encoding it; never below the true size."""
    return 64 + len(one.name.encode()) + len(_SUMS) * 8 * len(one.served)


def kinship_out(body: Kinship) -> pb.Kinship:
    """The message of a kinship."""
    return pb.Kinship(
        at_unix_ms=body.at_ms,
        former_version=body.former_version,
        former_digest=body.former_digest,
        layers=[_layer_out(one) for one in body.layers],
    )


def kinship_in(message: pb.Kinship) -> Kinship:
    """The inverse of `kinship_out`; raises WireError where the message is damaged or cannot be true."""
    if message.at_unix_ms <= 0:
        raise WireError(f"a kinship at {message.at_unix_ms} ms")
    for name in ("former_version", "former_digest"):
        if not getattr(message, name):
            raise WireError(f"the kinship's {name} is empty")
    layers = tuple(_layer_in(item) for item in message.layers)
    if len({one.name for one in layers}) < len(layers):
        raise WireError("the kinship has two layers of one name")
    return Kinship(message.at_unix_ms, message.former_version, message.former_digest, layers)


def _layer_out(one: LayerKinship) -> pb.LayerKinship:
    sums: dict[str, Any] = {name: getattr(one, name).tolist() for name in _SUMS}
    return pb.LayerKinship(name=one.name, n=one.n, broken=one.broken, **sums)


def _layer_in(message: pb.LayerKinship) -> LayerKinship:
    if not message.name:
        raise WireError("a layer of a kinship has no name")
    if not 0 < message.n + message.broken <= _MOST:
        raise WireError(f"layer {message.name}: a kinship of {message.n + message.broken} requests")
    sums = {name: np.array(getattr(message, name), np.float64) for name in _SUMS}
    widths = {len(values) for values in sums.values()}
    if len(widths) > 1 or not 0 < len(sums["served"]) <= KINSHIP_CHANNELS:
        raise WireError(f"layer {message.name}: sums of {sorted(widths)} channels, not of 1 to {KINSHIP_CHANNELS}")
    if not all(np.isfinite(values).all() for values in sums.values()):
        raise WireError(f"layer {message.name}: a sum of the kinship is not finite")
    if min(sums["served_sq"].min(), sums["former_sq"].min()) < 0:
        raise WireError(f"layer {message.name}: a sum of squares of the kinship is negative")
    return LayerKinship(message.name, message.n, **sums, broken=message.broken)
