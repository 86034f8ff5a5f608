"""What a frozen reference may err by: a channel that has not changed is no evidence, however large the windows are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from detector.statistics.drift import PARTS, drift
from detector.statistics.reference_error import REFERENCE_RISK, UNCHANGED_RISK
from detector.statistics.sequential import calibrate
from tests.statistics.draws import counts, draw, summary
from tests.statistics.laws import Law, cells, hurdle

CHANNELS = 20_000
EQUAL = np.full(6, 1 / 6)


@pytest.mark.parametrize("reference", [250, 1000])
@pytest.mark.parametrize(
    "law",
    [cells(np.ones(1), zeros=0.5), cells(EQUAL), cells(EQUAL, zeros=0.8), hurdle(0.3, graded=True)],
    ids=["zeros", "values", "few values", "fractions"],
)
def test_windows_that_err_by_nothing_find_no_fault_in_references_of_what_has_not_changed(
    law: Law, reference: int
) -> None:
    rng = np.random.default_rng(0)
    before = draw(law, reference, CHANNELS, rng)
    now = summary(law, np.repeat(np.rint(1e6 * law.shares).astype(np.int64)[None], CHANNELS, axis=0))
    p_parts = drift(before, now, 0.1, reference_risk=REFERENCE_RISK).p_parts
    for part, p in zip(PARTS, p_parts.T, strict=True):
        assert (p < 1e-3).sum() <= binom.isf(1e-4, CHANNELS, UNCHANGED_RISK), part


@pytest.mark.parametrize(("before", "now"), [(1000, 200), (200, 60), (200, 400), (1000, 4000)])
@pytest.mark.parametrize(
    "law",
    [
        cells(np.full(7, 1 / 7), zeros=0.87),
        cells(np.full(5, 1 / 5), zeros=0.3),
        cells(np.array([0.92, 0.004, 0.076])),
        cells(np.array([0.62, 0.004, 0.001, 0.03, 0.285, 0.03, 0.03]), zeros=0.9),
        cells(np.array([0.5, 0.5]), zeros=0.01),
    ],
    ids=["87% zeros", "30% zeros", "point mass", "90% zeros and rare values", "two values"],
)
def test_evidence_does_not_grow_against_any_reference_while_nothing_changes(law: Law, before: int, now: int) -> None:
    """For each of forty references, the mean e-value of the windows that are compared with it."""
    rng = np.random.default_rng(2)
    references, windows = 40, 300
    held = summary(law, np.repeat(counts(law, before, references, rng), windows, axis=0))
    p = drift(held, draw(law, now, references * windows, rng), 0.1, reference_risk=REFERENCE_RISK).p_parts
    mean = calibrate(p).reshape(references, windows, len(PARTS)).mean(axis=1)
    assert (mean <= 1.05).all(), dict(zip(PARTS, mean.max(axis=0), strict=True))  # 300 windows: a standard error of .03
