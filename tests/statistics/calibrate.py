"""False-alarm rates of every test on every null, from millions of p-values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.summary.histogram import Ints
from tests.statistics.nulls import Null, nulls
from tests.statistics.parallel import spread
from tests.statistics.rates import LEVELS, Rate

CHUNK = 20_000
CURVE = 10.0 ** -np.arange(0, 6.25, 0.25)
"""Levels of the plot."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A null case and how often its p-values were at or below each level."""

    null: Null
    rates: tuple[Rate, ...]
    curve: Ints
    """Rejections at the levels of `CURVE`."""

    @property
    def valid(self) -> bool:
        return all(rate.valid for rate in self.rates)


@dataclass(frozen=True, slots=True)
class _Piece:
    case: int
    number: int
    channels: int
    seed: int


def calibrate(p_values: int, workers: int, seed: int = 0) -> list[Calibration]:
    """All cases, with at least so many p-values each."""
    cases = nulls()
    chunks = -(-p_values // CHUNK)
    channels = min(CHUNK, p_values)
    pieces = [_Piece(case, number, channels, seed) for case in range(len(cases)) for number in range(chunks)]
    levels = np.concatenate([LEVELS, CURVE])
    totals = np.zeros((len(cases), len(levels)), np.int64)
    for piece, found in zip(pieces, spread("calibration", _rejections, pieces, workers), strict=True):
        totals[piece.case] += found
    trials = chunks * channels
    return [
        Calibration(
            null,
            tuple(Rate(level, int(count), trials) for level, count in zip(LEVELS, row, strict=False)),
            row[len(LEVELS) :],
        )
        for null, row in zip(cases, totals, strict=True)
    ]


def _rejections(piece: _Piece) -> Ints:
    rng = np.random.default_rng([piece.seed, piece.case, piece.number])
    p = np.sort(nulls()[piece.case].draw(piece.channels, rng))
    return np.searchsorted(p, np.concatenate([LEVELS, CURVE]), side="right").astype(np.int64)
