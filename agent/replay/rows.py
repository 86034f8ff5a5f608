"""Which rows of a request stand for it, and batches of such rows. Pure: the random generator is an argument.

A client may send many rows in one request. They are alike (frames of one camera, sentences of one text), and all tests
count requests, so one row, drawn at random, stands for its request: each request has the same weight whatever its size,
and the row has the distribution of a row. Where the model takes one batch size only, the request is run as it came, for
nothing tells such a batch from a tensor without requests, and the row is drawn from what comes out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.replay import batching
from agent.replay.batching import Axes, Tensors

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is run for one request, and which rows count."""

    inputs: Tensors
    """The drawn rows alone, or all rows of the request where the model takes one batch size only."""
    kept: Ints
    """Places in ``inputs`` of the rows that count, in the order in which they were drawn."""
    row: int
    """The row that was drawn first, among the request's."""
    rows: int
    """How many rows the request has."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together."""

    inputs: Tensors
    kept: Ints
    """Places of the rows that count."""
    arrived_ms: Ints
    """When their requests arrived, shape (len(kept),)."""
    whole: bool
    """Whether it is one request as it came, which cannot be cut."""


def draw(inputs: Tensors, axes: Axes, fixed: int | None, most: int, rng: np.random.Generator) -> Drawn:
    """Draws up to ``most`` rows of a request without replacement; ``fixed`` is the only batch size of the model."""
    rows = batching.count(inputs, axes)
    drawn = rng.permutation(rows)[:most] if rows > 1 else np.zeros(rows, np.int64)
    if fixed is not None:
        return Drawn(inputs, drawn, int(drawn[0]), rows)
    taken = inputs if rows == 1 else batching.take(inputs, axes, drawn)
    return Drawn(taken, np.arange(len(drawn)), int(drawn[0]), rows)


def batches(requests: Sequence[tuple[int, Drawn]], axes: Axes, fixed: int | None, most: int) -> Iterator[Batch]:
    """Batches of at most ``most`` rows that can share a run; each request is given with its arrival (Unix ms)."""
    if fixed is not None:
        for arrived_ms, drawn in requests:
            arrived = np.full(len(drawn.kept), arrived_ms, np.int64)
            yield Batch(batching.fill(drawn.inputs, axes, fixed), drawn.kept, arrived, whole=True)
        return
    alike: dict[Hashable, list[tuple[int, Drawn]]] = {}
    for arrived_ms, drawn in requests:
        alike.setdefault(batching.key(drawn.inputs, axes), []).append((arrived_ms, drawn))
    for group in alike.values():
        inputs = batching.stack([drawn.inputs for _, drawn in group], axes)
        counts = [len(drawn.kept) for _, drawn in group]
        arrived = np.repeat(np.array([arrived_ms for arrived_ms, _ in group], np.int64), counts)
        for start in range(0, len(arrived), most):
            part = arrived[start : start + most]
            yield Batch(batching.cut(inputs, axes, start, start + len(part)), np.arange(len(part)), part, whole=False)


def halves(batch: Batch, axes: Axes) -> tuple[Batch, Batch]:
    """A batch of rows that may be cut, in two."""
    middle, end = len(batch.kept) // 2, len(batch.kept)
    return _part(batch, axes, 0, middle), _part(batch, axes, middle, end)


def _part(batch: Batch, axes: Axes, start: int, stop: int) -> Batch:
    inputs = batching.cut(batch.inputs, axes, start, stop)
    return Batch(inputs, np.arange(stop - start), batch.arrived_ms[start:stop], whole=False)
