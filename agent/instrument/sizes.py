"""How large the probed tensors are, from their shapes alone. What observing them costs is timed, on the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.instrument.types import Extent, TensorType

_VALUES = 3  # pooled values of a channel: mean, maximum, fraction
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """All figures are per request."""

    elements: Mapping[str, int | None]
    """By probe name: elements of the probed tensor; None where an extent is free."""
    dense: Mapping[str, bool]
    """By probe name: whether it needs no pooling."""
    given: frozenset[str]
    """Probes that are read from the request and not fetched."""

    def fetched_bytes(self, probe: str, channels: int | None) -> int | None:
        """Bytes of one probe that leave the device; None where the channels are not known."""
        if probe in self.given:
            return 0
        return None if channels is None else channels * _FLOAT_BYTES * (1 if self.dense[probe] else _VALUES)


def per_request(known: TensorType, requests: int) -> int | None:
    """Elements of one request, whose axis is ``requests``; None where an extent is free."""
    return _product(extent for axis, extent in enumerate(known.shape) if axis != requests)


def _product(extents: Iterable[Extent]) -> int | None:
    count = 1
    for extent in extents:
        if not isinstance(extent, int):
            return None
        count *= extent
    return count
