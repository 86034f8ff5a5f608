"""reluscope beside its peers on synthetic streams and on real activations, at one false-alarm rate."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from detector.domain.settings import CheckSettings
from tests.statistics import product
from tests.statistics.contest import Entry, match
from tests.statistics.digits import camera, corruptions
from tests.statistics.peers.exchange import Scores, Streams, joined
from tests.statistics.peers.roster import PEERS, Peer, score, unavailable
from tests.statistics.scenarios import HORIZON, N_REFERENCE, WINDOW, Family, families, streams

OURS = ("reluscope, window alone", "reluscope", "reluscope, no tolerance")
"""The first two as shipped; the last over time with a tolerated effect of 0, for peers tolerate nothing either."""


Ways = tuple[Scores, ...]
"""A stream's scores in the order of `OURS`."""
TOLERATED = CheckSettings().min_effect


@dataclass(frozen=True, slots=True)
class Contest:
    """All detectors on one family of streams."""

    family: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many streams, and how long a slow peer may take."""

    healthy: int
    changed: int
    seconds: float
    """Per peer and family. A peer that needs longer gets fewer streams, one that would get under `FEWEST` none."""


FEWEST = 20


def synthetic(sizes: Sizes, workers: int, seed: int = 0) -> list[Contest]:
    """Every family of `families`."""
    contests = []
    for number, family in enumerate(families()):
        rng = np.random.default_rng([seed, number])
        healthy, changed = _drawn(family, sizes, rng)
        ours = reluscope(
            by_channels(healthy),
            {name: by_channels(one) for name, one in changed.items()},
            healthy.reference.size + healthy.requests.size,
        )
        contests.append(Contest(family.name, (*ours, *_peers(family.name, healthy, changed, sizes, workers))))
    return contests


def real(sizes: Sizes, workers: int, seed: int = 1) -> Contest:
    """The digits CNN: 67 channels of five probes under `corruptions`."""
    rng, shoot = np.random.default_rng(seed), camera().shoot
    ours: dict[str, Ways] = {}
    theirs: dict[str, Streams] = {}
    for what in (None, *corruptions()):
        name = "" if what is None else f"{what.kind} {what.degree}"
        count = sizes.healthy if what is None else sizes.changed
        before = [shoot(N_REFERENCE, rng) for _ in range(count)]
        now = [shoot(HORIZON, rng, what) for _ in range(count)]
        shipped, strict = (product.score_layers(camera().probes, before, now, WINDOW, d) for d in (TOLERATED, 0.0))
        ours[name] = (*shipped, strict[1])
        theirs[name] = Streams(product.means(before), product.means(now), WINDOW)
    healthy, well = ours.pop(""), theirs.pop("")
    entries = reluscope(healthy, ours, well.reference.size + well.requests.size)
    return Contest("digits CNN", (*entries, *_peers("digits CNN", well, theirs, sizes, workers)))


def reluscope(healthy: Ways, changed: Mapping[str, Ways], values: int) -> list[Entry]:
    """The entries of `OURS`; ``values`` are the healthy streams'."""
    return [
        match(name, healthy[way], {change: scores[way] for change, scores in changed.items()}, values)
        for way, name in enumerate(OURS)
    ]


def by_channels(given: Streams) -> Ways:
    """Streams of one channel."""
    shipped, strict = (product.score_channels(given, d) for d in (TOLERATED, 0.0))
    return (*shipped, strict[1])


def _drawn(family: Family, sizes: Sizes, rng: np.random.Generator) -> tuple[Streams, dict[str, Streams]]:
    healthy = streams(family.healthy, family.healthy, sizes.healthy, rng)
    return healthy, {name: streams(family.healthy, now, sizes.changed, rng) for name, now in family.changes.items()}


def _peers(family: str, healthy: Streams, changed: Mapping[str, Streams], sizes: Sizes, workers: int) -> list[Entry]:
    """Every installed peer that is quick enough, in the order of `PEERS`; the slow ones start first."""

    def run(peer: Peer) -> Entry | None:
        share = _affordable(peer, healthy, changed, sizes.seconds)
        count, each = int(share * sizes.healthy), max(1, int(share * sizes.changed))
        if count < FEWEST:
            return None
        some = [healthy.first(count), *(one.first(each) for one in changed.values())]
        begun = time.monotonic()
        # One run for all: to start an interpreter and import a library takes longer than many streams.
        scored = score(peer, joined(some))
        print(f"{family}: {peer.name}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        cuts = np.cumsum([len(one.requests) for one in some])[:-1]
        quiet, *rest = (replace(scored, values=values) for values in np.split(scored.values, cuts))
        spent = sum(one.reference.size + one.requests.size for one in some)
        return match(peer.name, quiet, dict(zip(changed, rest, strict=True)), spent)

    zeros = bool((healthy.reference == 0).any())
    able = [peer for peer in PEERS if (zeros or not peer.binary) and unavailable(peer) is None]
    slow_first = sorted(able, key=lambda peer: -peer.microseconds)
    with ThreadPoolExecutor(workers) as pool:
        entries = dict(zip(slow_first, pool.map(run, slow_first), strict=True))
    return [entry for peer in PEERS if (entry := entries.get(peer)) is not None]


def _affordable(peer: Peer, healthy: Streams, changed: Mapping[str, Streams], seconds: float) -> float:
    """The share of the streams that a peer gets through in time."""
    values = sum(one.requests.size for one in (healthy, *changed.values()))
    return min(1.0, seconds / (values * peer.microseconds * 1e-6))
