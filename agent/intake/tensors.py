"""One tensor of a request, checked against what the model declares, to a numpy array."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agent.datatypes import NUMPY

Reason = Literal[
    "bad_encoding", "bad_header", "bad_json", "bad_request", "binary_size", "bytes_tensor", "data", "datatype",
    "internal", "missing_input", "missing_output", "shape", "shared_memory", "too_large", "unknown_input",
    "unknown_output",
]  # fmt: skip
"""A metric label: bounded."""

_LARGEST_EXTENT = 1 << 24
_MOST_EXTENTS = 8


class OipError(ValueError):
    """A request that cannot be replayed, and why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: str = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as the model declares it; -1 in `shape` where a dimension is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    role: Literal["input", "output"] = "input"
    """For messages."""


def dtype_of(spec: TensorSpec, datatype: Any) -> np.dtype[Any]:
    """numpy's type for the request's datatype, which has to be the model's."""
    if datatype == "BYTES" or spec.datatype == "BYTES":
        raise OipError("bytes_tensor", f"{spec.role} {spec.name!r} has datatype BYTES, which cannot be replayed")
    if datatype != spec.datatype:
        known = datatype if isinstance(datatype, str) and datatype in (*NUMPY, "BF16") else "none that is known"
        raise OipError("datatype", f"{spec.role} {spec.name!r} has datatype {known}, the model {spec.datatype}")
    if datatype not in NUMPY:
        raise OipError("datatype", f"{spec.role} {spec.name!r}: datatype {datatype} is not supported")
    return NUMPY[datatype]


def shape_of(spec: TensorSpec, shape: Any) -> tuple[int, ...]:
    """The request's shape, where the model can take it and it is not empty."""
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise OipError("shape", f"{spec.role} {spec.name!r}: the shape is no array of integers")
    fits = len(shape) == len(spec.shape) and all(
        size > 0 and wanted in (-1, size) for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise OipError("shape", f"{spec.role} {spec.name!r} has shape {_shown(shape)}, the model {list(spec.shape)}")
    return tuple(shape)


def binary_size(spec: TensorSpec, entry: dict[str, Any]) -> int | None:
    """Bytes of the tensor in the binary part; None where its data is in the JSON."""
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise OipError("bad_request", f"{spec.role} {spec.name!r}: the parameters are no object")
    if "shared_memory_region" in parameters:
        raise OipError(
            "shared_memory", f"{spec.role} {spec.name!r} is in the server's shared memory, not in the request"
        )
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise OipError("bad_request", f"{spec.role} {spec.name!r}: binary_data_size is no size")
    if size is not None and "data" in entry:
        raise OipError("bad_request", f"{spec.role} {spec.name!r} has both binary data and JSON data")
    return size


def from_binary(spec: TensorSpec, data: bytes, size: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Row-major little-endian elements; `size` is what the request announced, `data` what its body holds of it."""
    wanted = math.prod(shape) * dtype.itemsize
    if size != wanted:
        raise OipError(
            "binary_size", f"{spec.role} {spec.name!r}: its shape takes {wanted} bytes, and others are announced"
        )
    if len(data) != size:
        raise OipError(
            "binary_size", f"{spec.role} {spec.name!r}: {size} bytes announced, {len(data)} left in the body"
        )
    if dtype.kind == "b":  # any byte but 0 is true; numpy must not see other bit patterns in a bool
        flags: NDArray[Any] = np.frombuffer(data, np.uint8) != 0
        return flags.reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape)


def from_json(spec: TensorSpec, data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Row-major data, flat or nested as the shape is.

    Types are checked before numpy sees the list: numpy would cut 1.5 to 1, read "1" as 1, and give each element the
    room of the longest string.
    """
    values = _flatten(spec, data, shape)
    types = set(map(type, values))
    allowed: set[type] = {bool} if dtype.kind == "b" else {int} if dtype.kind in "iu" else {int, float}
    if not types <= allowed:
        found = sorted(kind.__name__ for kind in types - allowed)
        raise OipError("data", f"{spec.role} {spec.name!r}: {spec.datatype} data holds {', '.join(found)}")
    try:
        with np.errstate(over="ignore"):  # beyond FP16 or FP32 is infinite, as it is for the server
            return np.array(values, dtype).reshape(shape)
    except (OverflowError, ValueError):
        # Without numpy's words, also as a cause: they quote the number.
        raise OipError("data", f"{spec.role} {spec.name!r}: data beyond {spec.datatype}") from None


def _flatten(spec: TensorSpec, data: Any, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(data, list):
        raise OipError("data", f"{spec.role} {spec.name!r} has neither data in the JSON nor a binary_data_size")
    values = data
    if values and isinstance(values[0], list):
        count = 1
        for size, inner in itertools.pairwise(shape):
            count *= size
            if len(values) != count or set(map(type, values)) != {list} or set(map(len, values)) != {inner}:
                raise OipError(
                    "data", f"{spec.role} {spec.name!r}: the nesting of its data is not its shape {list(shape)}"
                )
            values = list(itertools.chain.from_iterable(values))
    if len(values) != math.prod(shape):
        raise OipError(
            "data", f"{spec.role} {spec.name!r} has {len(values)} elements, its shape takes {math.prod(shape)}"
        )
    return values


def _shown(shape: list[int]) -> str:
    """A client's shape for a message: never long, and without numbers that no extent can be."""
    extents = [str(size) if abs(size) <= _LARGEST_EXTENT else "..." for size in shape[:_MOST_EXTENTS]]
    return f"[{', '.join(extents + ['...'] * (len(shape) > _MOST_EXTENTS))}]"
