"""`python -m tests.bench.drift`: one full check of 10^5 channels, against a scipy loop and against other libraries.

The check starts from stored windows: drift, death, explosion, the evidence over time, the lists of channels, cause and
origin. The scipy loop does per channel what a script would: `chi2_contingency` on the values' bins, `fisher_exact` on
zeros, `betabinom` for silence. Other libraries are given the raw values of the same requests in memory; online ones
take in the reference first, which is part of their time. All but the check run on fewer channels and are scaled up; all
take turns within one run. `make peers` installs the libraries.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import betabinom, chi2_contingency, fisher_exact

from agent.summary import Summary, from_pooled
from agent.wire import Probe
from detector.checks.examine import accumulate, judge, measure
from detector.checks.policy import conclude
from detector.domain.settings import CheckSettings
from detector.statistics.bins import bin_count, common_bins, merge_sparse
from tests.detector.fakes import probe, rectified
from tests.statistics.peers.exchange import Streams
from tests.statistics.peers.roster import PEERS, Peer, score, unavailable

PER_LAYER = 1000
REFERENCE = 1001
LOOP_CHANNELS = 500
DAYS = 5 / 1440


@dataclass(frozen=True, slots=True)
class Rival:
    """A peer and the channels that it is timed on."""

    peer: Peer
    channels: int


def rivals() -> list[Rival]:
    """Every installed peer, and evidently's whole report beside its bare test; ADWIN as it is shipped."""
    found = []
    for peer in PEERS:
        if (reason := unavailable(peer)) is not None:
            print(f"without {peer.name}: {reason}")
            continue
        one = replace(peer, key="adwin_as_shipped") if peer.key == "adwin" else peer
        found.append(Rival(one, 4 if peer.microseconds > 100 else 50 if peer.online else 1000))
        if peer.library == "evidently":
            found.append(Rival(replace(peer, detector="report", key="report"), 20))
    return found


def make(channels: int, n: int, seed: int) -> dict[str, Summary]:
    """Layers of `PER_LAYER` half-active channels of a convolution: parts of them are active."""
    rng = np.random.default_rng(seed)
    layers = {}
    for i in range(channels // PER_LAYER):
        values = rectified(rng, n, PER_LAYER)
        layers[f"layer{i}"] = from_pooled(values, values, values / (1 + values))
    return layers


def product(probes: list[Probe], before: dict[str, Summary], now: dict[str, Summary]) -> float:
    """Seconds of all tests, the evidence over time, the lists of channels and the findings."""
    settings = CheckSettings()
    begun = time.perf_counter()
    measured = measure(probes, before, now, settings)
    conclude(*judge(measured, accumulate({}, measured, DAYS, settings), DAYS, settings))
    return time.perf_counter() - begun


def memory(probes: list[Probe], before: dict[str, Summary], now: dict[str, Summary]) -> float:
    """MiB that a check takes at its peak, beyond the summaries that it is given."""
    tracemalloc.start()
    product(probes, before, now)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 2**20


def held(summaries: dict[str, Summary]) -> float:
    """MiB of the summaries' arrays."""
    total = 0
    for summary in summaries.values():
        parts = (summary, summary.mean_histogram, summary.max_histogram)
        values = [getattr(part, name) for part in parts for name in part.__slots__]
        total += sum(value.nbytes for value in values if isinstance(value, np.ndarray))
    return total / 2**20


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


def rival_seconds(rival: Rival, n: int, seed: int) -> float:
    """Seconds per channel of a peer on the same kind of requests, its own start not counted."""
    rng = np.random.default_rng(seed)
    before, now = (rectified(rng, size, rival.channels)[None] for size in (REFERENCE, n))
    return score(rival.peer, Streams(before, now, n)).seconds / rival.channels


def main() -> None:
    """Prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    before, now = make(options.channels, REFERENCE, 0), make(options.channels, options.requests, 1)
    channels = PER_LAYER * len(before)
    probes = [probe(name, i, PER_LAYER) for i, name in enumerate(before)]
    buckets = sum(len(s.mean_histogram.count) for s in before.values()) / channels
    contenders = rivals()
    ours: list[float] = []
    theirs: dict[str, list[float]] = {}
    for turn in range(options.rounds):
        ours.append(product(probes, before, now))
        theirs.setdefault(f"scipy loop, from {LOOP_CHANNELS}", []).append(loop(before["layer0"], now["layer0"]))
        for rival in contenders:
            name = f"{rival.peer.name}, from {rival.channels}"
            theirs.setdefault(name, []).append(rival_seconds(rival, options.requests, turn))
    check, peak = float(np.median(ours)), memory(probes, before, now)
    scaled = {name: float(np.median(seconds)) * channels for name, seconds in theirs.items()}
    print(f"{channels} channels, {buckets:.0f} buckets each, {options.rounds} rounds, medians; others scaled up")
    print(f"{'full check (drift, dead, explosion, findings)':52}{check:10.2f} s")
    for name, seconds in scaled.items():
        print(f"{name:52}{seconds:10.1f} s{seconds / check:10.0f} x")
    print(
        f"{'memory: both summaries, and the check beyond them':52}{held(before) + held(now):10.0f} MiB{peak:8.0f} MiB"
    )
    figures = {
        "bench": "drift",
        "channels": channels,
        "buckets_per_channel": round(buckets, 1),
        "check_seconds": round(check, 3),
        "check_seconds_all": [round(seconds, 3) for seconds in ours],
        "check_peak_mib": round(peak),
        "summaries_mib": round(held(before) + held(now)),
        "others_seconds_scaled": {name: round(seconds, 1) for name, seconds in scaled.items()},
        "ratios": {name: round(seconds / check, 1) for name, seconds in scaled.items()},
        "python": platform.python_version(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
