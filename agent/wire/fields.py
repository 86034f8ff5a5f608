"""Parts that several message codecs share: probes, integer arrays, and the error they raise."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence

import numpy as np
from numpy.typing import NDArray

from agent.wire import reluscope_pb2 as pb
from agent.wire.messages import Probe, ProbeKind

MAX_CHANNELS = 1 << 20
"""A wider probe is refused: no layer has as many, so the message is damaged."""

MAX_COUNT = (1 << 63) - 1
"""What Postgres and numpy hold."""

_PIECE = 4096

_KINDS: dict[ProbeKind, pb.ProbeKind.ValueType] = {"input": pb.INPUT, "activation": pb.ACTIVATION, "output": pb.OUTPUT}
_KIND_NAMES: dict[int, ProbeKind] = {number: kind for kind, number in _KINDS.items()}


class WireError(ValueError):
    """A message that cannot be decoded, and why."""


def probe_out(probe: Probe) -> pb.Probe:
    """The message of a probe."""
    return pb.Probe(
        name=probe.name,
        op=probe.op,
        tensor=probe.tensor,
        channels=probe.channels or 0,
        axis=probe.axis,
        kind=_KINDS[probe.kind],
        position=probe.position,
        exact_zero=probe.exact_zero,
    )


def probe_in(message: pb.Probe) -> Probe:
    """The inverse of `probe_out`; raises WireError."""
    if not message.name:
        raise WireError("a probe has no name")
    kind = _KIND_NAMES.get(message.kind)
    if kind is None:
        raise WireError(f"probe {message.name}: kind {message.kind} is unknown")
    return Probe(
        name=message.name,
        op=message.op,
        tensor=message.tensor,
        channels=message.channels or None,
        axis=message.axis,
        kind=kind,
        position=message.position,
        exact_zero=message.exact_zero,
    )


def extend(field: MutableSequence[int], values: NDArray[np.int64]) -> None:
    """Appends in pieces: one long call would hold the interpreter, and with it the agent's intake, for milliseconds."""
    for start in range(0, len(values), _PIECE):
        field.extend(values[start : start + _PIECE].tolist())


def integers(values: Iterable[int]) -> NDArray[np.int64]:
    """The values as an array; raises WireError where one does not fit 63 bits."""
    try:
        return np.array(list(values), np.int64)
    except OverflowError as error:
        raise WireError("a count exceeds 63 bits") from error
