"""Summaries as columns, and floats as JSON: shared by several tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sqlalchemy import RowMapping

from agent.summary import Summary, usable
from agent.wire import WireError, decode_histograms, encode_histograms
from detector.store.errors import StoreError

SKETCH_VERSION = 1
COUNTS = ("active", "nonfinite")
VALUES = ("fraction_sum", "fraction_sq_sum", "mean", "m2", "min", "max")
SUMMARY_COLUMNS = ("n", *COUNTS, *VALUES, "sketch", "sketch_version")
_NOT_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def summary_to_row(summary: Summary) -> dict[str, Any]:
    """The columns that windows and references share."""
    arrays = {name: getattr(summary, name).tolist() for name in COUNTS + VALUES}
    return {
        "n": int(summary.n),
        **arrays,
        "sketch": encode_histograms(summary),
        "sketch_version": SKETCH_VERSION,
    }


def summary_from_row(row: RowMapping) -> Summary:
    """The inverse; raises StoreError for a sketch of another release or a damaged one."""
    if row["sketch_version"] != SKETCH_VERSION:
        raise StoreError(f"a stored sketch has version {row['sketch_version']}, this release reads {SKETCH_VERSION}")
    try:
        mean_histogram, max_histogram = decode_histograms(bytes(row["sketch"]))
    except WireError as error:
        raise StoreError(f"a stored sketch is damaged: {error}") from error
    arrays: dict[str, Any] = {name: np.array(row[name], np.int64) for name in COUNTS}
    arrays |= {name: np.array(row[name], np.float64) for name in VALUES}
    return usable(Summary(n=row["n"], mean_histogram=mean_histogram, max_histogram=max_histogram, **arrays))


def to_json(value: Any) -> Any:
    """``value`` as jsonb takes it: numpy scalars become Python's, numbers that are not finite become words."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return value.replace("\0", "")  # Postgres keeps no NUL
    return value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`, but for tuples, which come back as lists."""
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
