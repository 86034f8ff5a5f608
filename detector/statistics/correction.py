"""Control of the false discovery rate over every channel that a check tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from agent.summary.histogram import Floats

Mask = NDArray[np.bool_]


def benjamini_hochberg(p_values: Floats, rate: float) -> Mask:
    """Which hypotheses to reject so that at most a share ``rate`` of the rejections is expected to be false.

    Holds under independence and positive dependence. Raises ValueError where the rate is not in (0, 1).
    Source: Benjamini and Hochberg, JRSS-B 57 (1995).
    """
    if not 0 < rate < 1:
        raise ValueError(f"false discovery rate must lie between 0 and 1: {rate}")
    count = len(p_values)
    if not count:
        return np.zeros(0, np.bool_)
    ordered = np.sort(p_values)
    passing = np.flatnonzero(ordered <= rate * np.arange(1, count + 1) / count)
    return np.asarray(p_values <= ordered[passing[-1]] if len(passing) else np.zeros(count, np.bool_))


def reject_together(p_values: Mapping[str, Floats], rate: float) -> dict[str, Mask]:
    """Benjamini-Hochberg over the channels of all layers as one family, handed back per layer."""
    if not p_values:
        return {}
    rejected = benjamini_hochberg(np.concatenate(list(p_values.values())), rate)
    ends = np.cumsum([len(values) for values in p_values.values()])
    return dict(zip(p_values, np.split(rejected, ends[:-1]), strict=True))


def e_benjamini_hochberg(e_values: Floats, rate: float) -> Mask:
    """Which hypotheses to reject by e-values, at most a share ``rate`` of them falsely in expectation.

    Holds however the hypotheses depend on each other. Rejects the k largest, with k the greatest number for which the
    k-th largest is at least m / (k * rate). Raises ValueError where the rate is not in (0, 1).
    Source: Wang and Ramdas, "False discovery rate control with e-values", JRSS-B 84 (2022).
    """
    if not 0 < rate < 1:
        raise ValueError(f"false discovery rate must lie between 0 and 1: {rate}")
    count = len(e_values)
    if not count:
        return np.zeros(0, np.bool_)
    ordered = np.sort(e_values)[::-1]
    passing = np.flatnonzero(ordered * np.arange(1, count + 1) >= count / rate)
    return np.asarray(e_values >= ordered[passing[-1]] if len(passing) else np.zeros(count, np.bool_))


def reject_together_e(e_values: Mapping[str, Floats], rate: float) -> dict[str, Mask]:
    """`e_benjamini_hochberg` over the channels of all layers as one family, handed back per layer."""
    if not e_values:
        return {}
    rejected = e_benjamini_hochberg(np.concatenate(list(e_values.values())), rate)
    ends = np.cumsum([len(values) for values in e_values.values()])
    return dict(zip(e_values, np.split(rejected, ends[:-1]), strict=True))
