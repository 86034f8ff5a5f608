"""Batches of requests: stacking, cutting and filling up along each input's own axis of requests.

``axes`` gives that axis by input name, as `Instrumented.batch_axes` does: 0 almost always, 1 for time-first
sequences and recurrent state, None for an input that all requests of a batch must share.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
Axes = Mapping[str, int | None]


def count(inputs: Tensors, axes: Axes) -> int:
    """The number of requests; raises ValueError where the inputs disagree."""
    counts = {name: value.shape[axis] for name, value in inputs.items() if (axis := axes.get(name, 0)) is not None}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{name} {number}" for name, number in counts.items())
        raise ValueError(f"the inputs differ in their number of requests: {listing}")
    return next(iter(counts.values()), 1)


def key(inputs: Tensors, axes: Axes) -> Hashable:
    """Equal for requests that can share a batch: equal shapes but for the requests, and equal shared inputs."""
    parts: list[Hashable] = []
    for name, value in inputs.items():
        axis = axes.get(name, 0)
        if axis is None:
            parts.append((name, value.shape, value.tobytes()))
        else:
            parts.append((name, value.shape[:axis] + value.shape[axis + 1 :]))
    return tuple(parts)


def stack(requests: Sequence[Tensors], axes: Axes) -> Tensors:
    """One batch of requests of equal `key`."""
    first = requests[0]
    return {
        name: first[name] if (axis := axes.get(name, 0)) is None else np.concatenate([r[name] for r in requests], axis)
        for name in first
    }


def cut(inputs: Tensors, axes: Axes, start: int, stop: int) -> Tensors:
    """The requests [start, stop) of a batch."""
    return {
        name: value if (axis := axes.get(name, 0)) is None else value[(slice(None),) * axis + (slice(start, stop),)]
        for name, value in inputs.items()
    }


def take(inputs: Tensors, axes: Axes, places: NDArray[np.int64]) -> Tensors:
    """The requests at these places of a batch, copied."""
    return {
        name: value if (axis := axes.get(name, 0)) is None else value.take(places, axis)
        for name, value in inputs.items()
    }


def fill(inputs: Tensors, axes: Axes, size: int) -> Tensors:
    """A batch of ``size``, filled up by repeating its requests; for models of one batch size."""
    requests = count(inputs, axes)
    return inputs if requests == size else take(inputs, axes, np.arange(size) % requests)
