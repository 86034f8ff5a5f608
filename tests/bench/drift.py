"""`python -m tests.bench.drift`: one full check of 10^5 channels against a loop over scipy.

The loop does per channel what a script would: `chi2_contingency` on the values' bins, `fisher_exact` on zeros,
`betabinom` for silence. It runs on a subset and is scaled up. The contenders take turns within one run.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import numpy as np
from scipy.stats import betabinom, chi2_contingency, fisher_exact

from agent.summary import Summary
from agent.wire import Probe
from detector.bins import bin_count, common_bins, merge_sparse
from detector.examine import accumulate, judge, measure
from detector.policy import conclude
from detector.settings import CheckSettings
from tests.detector.fakes import probe, rectified, summarise

PER_LAYER = 1000
LOOP_CHANNELS = 500


def make(channels: int, n: int, seed: int) -> dict[str, Summary]:
    """Layers of `PER_LAYER` half-active channels."""
    rng = np.random.default_rng(seed)
    return {f"layer{i}": summarise(rectified(rng, n, PER_LAYER)) for i in range(channels // PER_LAYER)}


def product(probes: list[Probe], before: dict[str, Summary], now: dict[str, Summary]) -> float:
    """Seconds of all tests, the evidence over time, the lists of channels and the findings."""
    settings, days = CheckSettings(), 5 / 1440
    begun = time.perf_counter()
    measured = measure(probes, before, now, settings)
    conclude(*judge(measured, accumulate({}, measured, days, settings), days, settings))
    return time.perf_counter() - begun


def loop(before: Summary, now: Summary) -> float:
    """Seconds per channel of scipy's tests, on counts that are binned already."""
    old, new = before.mean_histogram, now.mean_histogram
    bins = bin_count(new.totals() - new.zeros, old.totals() - old.zeros)
    p, q, kept = merge_sparse(*common_bins(old, new, bins))
    begun = time.perf_counter()
    for c in range(LOOP_CHANNELS):
        chi2_contingency(np.array([p[c, : kept[c]], q[c, : kept[c]]]), correction=False)
        k, k0 = int(now.active[c]), int(before.active[c])
        fisher_exact([[k, now.n - k], [k0, before.n - k0]])
        betabinom.cdf(k, now.n, k0 + 0.5, before.n - k0 + 0.5)
    return (time.perf_counter() - begun) / LOOP_CHANNELS


def main() -> None:
    """Prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    before, now = make(options.channels, 1000, 0), make(options.channels, options.requests, 1)
    channels = PER_LAYER * len(before)
    probes = [probe(name, i, PER_LAYER) for i, name in enumerate(before)]
    buckets = sum(len(s.mean_histogram.count) for s in before.values()) / channels
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(product(probes, before, now))
        theirs.append(loop(before["layer0"], now["layer0"]) * channels)
    check, scipy_loop = float(np.median(ours)), float(np.median(theirs))
    print(f"{channels} channels, {buckets:.0f} buckets each, {options.rounds} rounds, medians")
    print(f"{'full check (drift, dead, explosion, findings)':48}{check:10.2f} s")
    print(f"{f'scipy loop, scaled up from {LOOP_CHANNELS} channels':48}{scipy_loop:10.2f} s")
    print(f"{'ratio':48}{scipy_loop / check:10.0f} x")
    figures = {
        "bench": "drift",
        "channels": channels,
        "buckets_per_channel": round(buckets, 1),
        "check_seconds": round(check, 3),
        "check_seconds_all": [round(t, 3) for t in ours],
        "scipy_loop_seconds": round(scipy_loop, 1),
        "scipy_loop_channels_measured": LOOP_CHANNELS,
        "ratio": round(scipy_loop / check, 1),
        "python": platform.python_version(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
