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
    """A null case and how often one test's p-values were at or below each level."""

    null: Null
    what: str
    """One of the null's columns."""
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
    """All cases and their columns, with at least so many p-values each; parts that a null cannot test are left out."""
    cases = nulls()
    chunks = -(-p_values // CHUNK)
    channels = min(CHUNK, p_values)
    pieces = [_Piece(case, number, channels, seed) for case in range(len(cases)) for number in range(chunks)]
    levels = np.concatenate([LEVELS, CURVE])
    totals = [np.zeros((len(case.columns), len(levels)), np.int64) for case in cases]
    for piece, found in zip(pieces, spread("calibration", _rejections, pieces, workers), strict=True):
        totals[piece.case] += found
    trials = chunks * channels
    return [
        Calibration(
            null,
            what,
            tuple(Rate(level, int(count), trials) for level, count in zip(LEVELS, row, strict=False)),
            row[len(LEVELS) :],
        )
        for null, rows in zip(cases, totals, strict=True)
        for what, row in zip(null.columns, rows, strict=True)
        if what == null.columns[0] or row[len(LEVELS) + 1]
    ]


def _rejections(piece: _Piece) -> Ints:
    """Shape (columns, levels)."""
    rng = np.random.default_rng([piece.seed, piece.case, piece.number])
    p = nulls()[piece.case].draw(piece.channels, rng)
    levels = np.concatenate([LEVELS, CURVE])
    return np.array([np.searchsorted(np.sort(column), levels, side="right") for column in p.T], np.int64)
