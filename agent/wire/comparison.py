"""The algebra of comparisons: they merge by addition, maxima by the maximum, so any order and grouping will do.

>>> from agent.wire.messages import Probe, ProbeComparison
>>> import numpy as np
>>> probe = Probe("relu", "Relu", "t", 1, 1, "activation", 1, True)
>>> none = np.zeros(1, np.int64)
>>> one = ProbeComparison(probe, 1, 100, 100.0, 101.0, 1.0, 100.0, 0.5, 0, 0, none, none)
>>> sqnr_db(one)
20.0
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from agent.wire.messages import Behind, Comparison, ProbeComparison

_SAME = ("kind", "baseline", "baseline_digest", "reference", "provider", "start_ms", "end_ms")
COUNTS = (
    "n",
    "top1_n",
    "top1_agree",
    "accuracy_n",
    "served_correct",
    "baseline_correct",
    "baseline_n",
    "only_served_correct",
    "only_baseline_correct",
    "mismatched",
)
"""The comparison's own counts of requests, which add up."""


def merge(a: Comparison, b: Comparison) -> Comparison:
    """Both together, their probes in graph order; a probe that one side lacks is kept as it is.

    Raises:
        ValueError: they differ in kind, baseline, its digest, reference, provider or window, or a probe does not fit
            its namesake.
    """
    for name in _SAME:
        if getattr(a, name) != getattr(b, name):
            raise ValueError(f"comparisons differ in {name}: {getattr(a, name)!r} and {getattr(b, name)!r}")
    probes = {item.probe.name: item for item in a.probes}
    for item in b.probes:
        known = probes.get(item.probe.name)
        probes[item.probe.name] = item if known is None else merge_probes(known, item)
    ordered = sorted(probes.values(), key=lambda item: (item.probe.position, item.probe.name))
    counts = {name: getattr(a, name) + getattr(b, name) for name in COUNTS}
    return replace(a, probes=tuple(ordered), **counts)


def probes_only(item: Comparison) -> Comparison:
    """The comparison without its own counts: a further part of one that was split by probe."""
    zeros: dict[str, Any] = dict.fromkeys(COUNTS, 0)
    return replace(item, **zeros)


def merge_probes(a: ProbeComparison, b: ProbeComparison) -> ProbeComparison:
    """Both together; raises ValueError where the probes differ, or their numbers of channels."""
    if a.probe != b.probe:
        raise ValueError(f"probe {a.probe.name} is not the same in both comparisons")
    if a.only_served_active.shape != b.only_served_active.shape:
        raise ValueError(
            f"probe {a.probe.name} has {len(a.only_served_active)} and {len(b.only_served_active)} channels"
        )
    return ProbeComparison(
        probe=a.probe,
        n=a.n + b.n,
        elements=a.elements + b.elements,
        signal=a.signal + b.signal,
        power=a.power + b.power,
        noise=a.noise + b.noise,
        cross=a.cross + b.cross,
        max_abs_error=max(a.max_abs_error, b.max_abs_error),
        mismatched=a.mismatched + b.mismatched,
        nonfinite=a.nonfinite + b.nonfinite,
        only_served_active=a.only_served_active + b.only_served_active,
        only_baseline_active=a.only_baseline_active + b.only_baseline_active,
        behind=_both_behind(a.behind, b.behind),
    )


def _both_behind(a: Behind | None, b: Behind | None) -> Behind | None:
    """Not known of both where it is not known of one."""
    return None if a is None or b is None else Behind(a.requests + b.requests, a.squares + b.squares)


def sqnr_db(item: ProbeComparison) -> float:
    """Signal to quantization noise ratio in dB, 10 log10(signal / noise).

    +inf where nothing differs; -inf where the baseline is all zero and the served side is not.
    """
    if item.noise == 0:
        return math.inf
    if item.signal == 0:
        return -math.inf
    # A difference of logarithms: the quotient of two finite sums may leave the range of a double.
    return 10 * (math.log10(item.signal) - math.log10(item.noise))


def cosine(item: ProbeComparison) -> float:
    """Cosine of the angle between both sides' activations, -1 to 1.

    Where a side is all zero it has no direction: 1 if both are, else 0.
    """
    if item.signal == 0 or item.power == 0:
        return 1.0 if item.signal == item.power else 0.0
    value = item.cross / (math.sqrt(item.signal) * math.sqrt(item.power))
    return max(-1.0, min(1.0, value))
