"""Inputs made up from a model's input types, for timing it before the first request has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.datatypes import NUMPY
from agent.replay import Port


def synthetic(
    ports: Sequence[Port], batch_axes: Mapping[str, int | None], batch: int, extent: int, fill: int
) -> dict[str, NDArray[Any]]:
    """One batch: floats standard normal, integers and booleans all ``fill``.

    ``fill`` 0 is an index in every table; 1 is an open mask. Free extents become ``batch`` along an input's axis of
    requests, else ``extent``. Raises ValueError where a type cannot be made up.
    """
    rng = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for port in ports:
        axis = batch_axes.get(port.name, 0)
        shape = [known if known > 0 else batch if place == axis else extent for place, known in enumerate(port.shape)]
        dtype = NUMPY.get(port.datatype)
        if dtype is None:
            raise ValueError(f"no values of type {port.datatype} can be made up for input {port.name}")
        values = rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.full(shape, fill, dtype)
        made[port.name] = values
    return made
