"""Where the requests of a batch lie in each tensor, and tensors with the requests in front. Pure.

Almost always it is the first axis; with time first, (T, N, C), or recurrent state, (layers, N, C), it is another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.instrument import Instrumented
from agent.replay.batching import Tensors

Axes = Mapping[str, int | None]
"""By tensor: the axis of the requests; None where the rows are tokens, request by request. 0 for a tensor not there."""


def request_axes(instrumented: Instrumented) -> dict[str, int | None]:
    """Of every probed tensor of a model."""
    return {probe.tensor: instrumented.request_axes.get(probe.name) for probe in instrumented.probes}


def place(shape: Sequence[int], axis: int, requests: int, *, fixed: bool) -> int | None:
    """The axis of ``requests`` requests in a tensor of this shape; None where it has none.

    A model of a fixed batch has no symbol to follow through its graph, so ``axis`` says little there: where the extent
    is another one, the only axis with the batch's extent is meant.
    """
    if axis < len(shape) and shape[axis] == requests:
        return axis
    places = [other for other, extent in enumerate(shape) if extent == requests]
    return places[0] if fixed and requests > 1 and len(shape) > 2 and len(places) == 1 else None


def requests_first(
    value: NDArray[Any], axis: int | None, ran: int, some: slice, *, fixed: bool
) -> tuple[NDArray[Any], int]:
    """``some`` of the ``ran`` requests of a tensor, on its first axis, and the axis they were on.

    Tokens in rows stay in rows. A tensor that has no axis of so many requests is returned as it is, with axis 0.
    """
    if axis is None:
        if not value.ndim or len(value) % ran:
            return value, 0
        tokens = len(value) // ran
        return value[some.start * tokens : some.stop * tokens], 0
    found = place(value.shape, axis, ran, fixed=fixed)
    if found is None:
        return value, 0
    return np.moveaxis(value[(slice(None),) * found + (some,)], found, 0), found


def all_requests_first(
    values: Tensors, axes: Axes, ran: int, some: slice, *, fixed: bool
) -> tuple[Tensors, dict[str, int]]:
    """`requests_first` of several tensors; the axes only of those whose requests were not in front."""
    placed = {name: requests_first(value, axes.get(name, 0), ran, some, fixed=fixed) for name, value in values.items()}
    return {name: value for name, (value, _) in placed.items()}, {
        name: axis for name, (_, axis) in placed.items() if axis
    }
