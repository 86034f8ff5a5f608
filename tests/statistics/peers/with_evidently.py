"""evidently's default test for numeric columns, as its reports choose it.

A report takes a fifth of a second for each column, so the registered test itself is called: the same function, the same
threshold.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from evidently import Dataset, Report
from evidently.legacy.calculations.stattests import get_stattest
from evidently.legacy.core import ColumnType
from evidently.presets import DataDriftPreset

from tests.statistics.peers.exchange import Floats, Ints, Streams, by_window, serve

DISTANCES = {"wasserstein", "jensenshannon"}
"""Tests whose score grows with drift; the others hand back p-values."""


def default(streams: Streams) -> tuple[Floats, Ints, float]:
    """Of one column, the drift score in units of the test's threshold; of many, the share of drifted ones, as reports.

    The largest score would not do: a column that hardly varies in the reference has enormous ones by chance.
    """
    names = range(streams.reference.shape[2])
    frames = [pd.DataFrame(reference) for reference in streams.reference]

    def score(stream: int, window: Floats) -> float:
        frame, ratios = pd.DataFrame(window), []
        for name in names:
            before, now = frames[stream][name], frame[name]
            test = get_stattest(before, now, ColumnType.Numerical, None)
            result = test(before, now, ColumnType.Numerical, None)
            ratio = result.drift_score / result.actual_threshold
            ratios.append(ratio if test.name in DISTANCES else 1 / max(ratio, 1e-300))
        return ratios[0] if len(ratios) == 1 else float(np.mean(np.array(ratios) >= 1))

    values, times = by_window(streams, score)
    return values, times, 1.0 if len(names) == 1 else 0.5


def report(streams: Streams) -> tuple[Floats, Ints, float]:
    """The share of drifted columns, from a whole report for every window."""
    names = [f"c{i}" for i in range(streams.reference.shape[2])]
    frames = [Dataset.from_pandas(pd.DataFrame(reference, columns=names)) for reference in streams.reference]

    def score(stream: int, window: Floats) -> float:
        current = Dataset.from_pandas(pd.DataFrame(window, columns=names))
        metrics = Report([DataDriftPreset()]).run(current, frames[stream]).dict()["metrics"]
        return float(metrics[0]["value"]["share"])

    values, times = by_window(streams, score)
    return values, times, 0.5


if __name__ == "__main__":
    serve({"default": default, "report": report})
