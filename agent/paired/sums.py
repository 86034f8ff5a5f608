"""Two tensors of the same requests to sums that merge. Pure; float64 in chunks, so that memory stays small.

With s the served side's element and b the baseline's, over the element pairs that are finite on both sides:
signal = Σb², power = Σs², noise = Σ(s - b)², cross = Σsb. From these follow SQNR and cosine (`agent.wire`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from agent import wire
from agent.options import SECTION, Option
from agent.summary import LARGEST

CHUNK = 1 << 18
"""Elements that are in float64 at a time: 2 MiB per array."""
_LEAST_RMS = 1e-6
"""Of all-zero outputs, that they have some tolerance too."""
_SMALLEST = 1e-120
"""A smaller magnitude counts as zero: its square would leave the range of a double, and its products would not."""

Array = NDArray[Any]
Flags = NDArray[np.bool_]


@settings(frozen=True, slots=True, config=SECTION)
class Tolerance:
    """An element is beyond it where |served - baseline| > atol * rms + rtol * |baseline|.

    rms is the root mean square of the baseline's elements of that request: rounding errs by a share of the numbers that
    were added up, so an element near zero errs as much as its neighbours, whatever unit the output is in.
    """

    rtol: Annotated[float, Option("mismatch_rtol")] = Field(default=0.02, ge=0)
    """Tolerated error of an output element, per its size."""
    atol: Annotated[float, Option("mismatch_atol")] = Field(default=0.02, ge=0)
    """The same, per root mean square of the whole output."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One probe's sums for a batch, and which of its requests had an element beyond tolerance."""

    sums: wire.ProbeComparison
    mismatched: Flags
    """Shape (requests,); all false without a tolerance."""


def compare(probe: wire.Probe, served: Array, baseline: Array, tolerance: Tolerance | None) -> Compared:
    """The sums of one batch.

    Args:
        probe: the served side's; its ``axis`` has the channels, unless ``channels`` is None in a tensor of rank 1.
        served: shape (requests, ...), any real dtype.
        baseline: of the same shape.
        tolerance: None where the two sides are not expected to agree element by element.

    Raises:
        ValueError: the shapes differ or are empty.
    """
    if served.shape != baseline.shape or served.ndim == 0 or served.size == 0:
        raise ValueError(f"probe {probe.name}: shapes {served.shape} and {baseline.shape} cannot be compared")
    requests = len(served)
    parts, cross = np.zeros((3, requests)), 0.0
    largest, elements = 0.0, 0
    mismatched, nonfinite = np.zeros(requests, np.bool_), np.zeros(requests, np.bool_)
    flat_s, flat_b = served.reshape(requests, -1), baseline.reshape(requests, -1)
    absolute = None if tolerance is None else tolerance.atol * _rms(flat_b)
    for rows, columns in _chunks(*flat_s.shape):
        s, b = flat_s[rows, columns].astype(np.float64), flat_b[rows, columns].astype(np.float64)
        finite_s, finite_b = np.abs(s) <= LARGEST, np.abs(b) <= LARGEST  # false for NaN
        both, one = finite_s & finite_b, finite_s != finite_b
        s, b = (np.where(both & (np.abs(side) >= _SMALLEST), side, 0.0) for side in (s, b))
        error = np.abs(s - b)
        parts[:, rows] += [(side * side).sum(axis=1) for side in (b, s, error)]
        cross += float(np.sum(s * b))
        largest = max(largest, float(error.max(initial=0.0)))
        elements += int(both.sum())
        nonfinite[rows] |= one.any(axis=1)
        if tolerance is not None and absolute is not None:
            beyond = error > absolute[rows, np.newaxis] + tolerance.rtol * np.abs(b)
            mismatched[rows] |= (beyond | one).any(axis=1)
    only_served, only_baseline = _one_sided(probe, served, baseline)
    signal, power, noise = parts.sum(axis=1).tolist()
    with np.errstate(over="ignore"):
        behind = wire.Behind((parts > 0).sum(axis=1, dtype=np.int64), (parts * parts).sum(axis=1))
    sums = wire.ProbeComparison(
        probe=probe,
        n=requests,
        elements=elements,
        signal=signal,
        power=power,
        noise=noise,
        cross=cross,
        max_abs_error=largest,
        mismatched=int(mismatched.sum()),
        nonfinite=int(nonfinite.sum()),
        only_served_active=only_served,
        only_baseline_active=only_baseline,
        behind=behind,
    )
    return Compared(sums, mismatched)


def top1(scores: Array) -> tuple[NDArray[np.int64], Flags]:
    """The class of each row of ``scores`` (requests, classes), and whether it has one: a row with NaN has none.

    Of equal scores the first is taken, as servers do.
    """
    values = scores.astype(np.float64)
    has: Flags = np.asarray(~np.isnan(values).any(axis=1), np.bool_)
    return np.where(np.isnan(values), -np.inf, values).argmax(axis=1), has


def _rms(flat: Array) -> NDArray[np.float64]:
    """Root mean square of the finite elements of each row of (requests, elements)."""
    squares, count = np.zeros(len(flat)), np.zeros(len(flat), np.int64)
    for rows, columns in _chunks(*flat.shape):
        values = flat[rows, columns].astype(np.float64)
        finite = np.abs(values) <= LARGEST
        squares[rows] += np.square(np.where(finite, values, 0.0)).sum(axis=1)
        count[rows] += finite.sum(axis=1)
    return np.maximum(np.sqrt(squares / np.maximum(count, 1)), _LEAST_RMS)


def _chunks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Slices of a (rows, columns) array of at most CHUNK elements each."""
    width = min(columns, CHUNK)
    height = max(1, CHUNK // width)
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            yield slice(row, row + height), slice(column, column + width)


def _one_sided(probe: wire.Probe, served: Array, baseline: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """McNemar's discordant counts per channel: requests with a positive element on one side only."""
    if served.ndim < 2 or not 0 < probe.axis < served.ndim:
        none = np.zeros(0, np.int64)
        return none, none
    others = tuple(axis for axis in range(1, served.ndim) if axis != probe.axis)
    channels = served.shape[probe.axis]
    only_served, only_baseline = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    step = max(1, CHUNK * len(served) // served.size)
    for start in range(0, len(served), step):
        active_s = (served[start : start + step] > 0).any(axis=others)
        active_b = (baseline[start : start + step] > 0).any(axis=others)
        only_served += (active_s & ~active_b).sum(axis=0)
        only_baseline += (active_b & ~active_s).sum(axis=0)
    return only_served, only_baseline
