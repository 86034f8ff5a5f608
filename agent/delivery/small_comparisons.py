"""Comparisons of too few requests wait for more, as windows do: see `agent.delivery.small_groups`. Pure.

A comparison's own counts and each of its probes decide for themselves, for groups of probes are fetched in turns. What
is carried over is added to the next window's comparison with the same baseline. Holdouts are labelled sets, no traffic:
they are not for here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from agent import wire
from agent.delivery.small_groups import MinGroup, Withheld, WithheldReason
from agent.delivery.versions import Version
from agent.summary.coarse import are_many, middles, rounded_up
from agent.wire import Comparison, ProbeComparison

WHOLE = ""
"""Stands for a comparison's own counts where requests are listed by probe."""

_Key = tuple[Version, str, str, str, str, str]
"""Version; kind, baseline, its digest, reference, provider."""


@dataclass(frozen=True, slots=True)
class _Counts:
    body: Comparison
    """Without probes."""
    since_ms: int
    """Start of the window of the oldest request."""


@dataclass(frozen=True, slots=True)
class _Sums:
    item: ProbeComparison
    since_ms: int


@dataclass(slots=True)
class _Waiting:
    span: tuple[int, int]
    """The newest window."""
    counts: _Counts | None = None
    probes: dict[str, _Sums] = field(default_factory=dict)

    def requests(self) -> dict[str, int]:
        listed = {name: sums.item.n for name, sums in self.probes.items()}
        return listed if self.counts is None else {WHOLE: self.counts.body.n, **listed}


@dataclass(slots=True)
class PassedComparison:
    """What is to become of a closed comparison."""

    key: _Key
    waiting: _Waiting
    """What waits from then on."""
    comparison: Comparison | None = None
    """What leaves."""
    carried: dict[str, int] = field(default_factory=dict)
    """Requests of this window that wait for more, by probe."""
    withheld: list[Withheld] = field(default_factory=list)

    def withhold(self, reason: WithheldReason, name: str, requests: int) -> None:
        """Adds to what is withheld."""
        self.withheld.append(Withheld(self.key[0], reason, {name: requests}))


class SmallComparisons:
    """Comparisons of too few requests. Not thread-safe: it belongs to the thread that compares.

    `weigh` and `settle` are as in `agent.delivery.small_groups.SmallWindows`.
    """

    def __init__(self, group: MinGroup) -> None:
        self._group = group
        self._waiting: dict[_Key, _Waiting] = {}

    def weigh(self, version: Version, body: Comparison) -> PassedComparison:
        """What of a comparison, and of what waited for it, rests on enough requests."""
        key = (version, body.kind, body.baseline, body.baseline_digest, body.reference, body.provider)
        before = self._waiting.get(key) or _Waiting((body.start_ms, body.end_ms))
        start_ms, end_ms = span = max(before.span, (body.start_ms, body.end_ms))
        passed = PassedComparison(key, _Waiting(span, probes=dict(before.probes)))
        own = replace(body, probes=(), start_ms=start_ms, end_ms=end_ms)
        counts = self._counts(passed, before.counts, _Counts(own, body.start_ms))
        ready = [self._sums(passed, _Sums(item, body.start_ms)) for item in body.probes]
        told = tuple(_told(item, self._group.requests) for item in ready if item is not None)
        if counts is not None or told:
            passed.comparison = replace(counts or wire.probes_only(own), probes=told)
        return passed

    def settle(self, passed: PassedComparison) -> None:
        """What was weighed last has left."""
        self._waiting.pop(passed.key, None)
        if passed.waiting.counts is not None or passed.waiting.probes:
            self._waiting[passed.key] = passed.waiting

    def withhold(self, reason: WithheldReason, which: Callable[[Version], bool]) -> list[Withheld]:
        """Forgets what waits of the versions that ``which`` says."""
        gone = [key for key in self._waiting if which(key[0])]
        return [Withheld(key[0], reason, self._waiting.pop(key).requests()) for key in gone]

    def _counts(self, passed: PassedComparison, before: _Counts | None, now: _Counts) -> Comparison | None:
        """The comparison's own counts, without probes, where they rest on enough requests."""
        fresh = now.body.n
        if before is not None and self._is_stale(before.since_ms, now.since_ms):
            passed.withhold("stale", WHOLE, before.body.n)
        elif before is not None:
            same = replace(before.body, start_ms=now.body.start_ms, end_ms=now.body.end_ms)
            now = _Counts(wire.merge(same, now.body), min(before.since_ms, now.since_ms))
        if now.body.n >= self._group.requests:
            return now.body
        if now.body.n:
            passed.waiting.counts = now
            passed.carried |= {WHOLE: fresh} if fresh else {}
        return None

    def _sums(self, passed: PassedComparison, now: _Sums) -> ProbeComparison | None:
        """One probe's sums, where they rest on enough requests."""
        name, fresh = now.item.probe.name, now.item.n
        before = passed.waiting.probes.pop(name, None)
        if before is not None and not _alike(before.item, now.item):
            passed.withhold("width_changed", name, before.item.n)
        elif before is not None and self._is_stale(before.since_ms, now.since_ms):
            passed.withhold("stale", name, before.item.n)
        elif before is not None:
            now = _Sums(wire.merge_probes(before.item, now.item), min(before.since_ms, now.since_ms))
        if now.item.n >= self._group.requests:
            return now.item
        if now.item.n:
            passed.waiting.probes[name] = now
            passed.carried |= {name: fresh} if fresh else {}
        return None

    def _is_stale(self, since_ms: int, start_ms: int) -> bool:
        return start_ms - since_ms > self._group.carry_seconds * 1000


def _told(item: ProbeComparison, least: int) -> ProbeComparison:
    """The probe as it may be told: sums that rest on too few requests, or on one or two large ones, by their buckets.

    Any three of the four sums give the fourth, so all are exact or none is; the product is worked out from the others.
    """
    item = replace(item, max_abs_error=rounded_up(item.max_abs_error))
    exact = np.array([item.signal, item.power, item.noise])
    if least <= 1 or (item.behind is not None and _are_many(exact, item.behind, least)):
        return item
    signal, power, noise = middles(exact).tolist()
    noise = min(noise, (math.sqrt(signal) + math.sqrt(power)) ** 2)
    most = math.sqrt(signal) * math.sqrt(power)
    cross = min(max((signal + power - noise) / 2, -most), most)
    return replace(item, signal=signal, power=power, noise=noise, cross=cross)


def _are_many(exact: NDArray[np.float64], behind: wire.Behind, least: int) -> bool:
    return bool(are_many(exact, behind.requests, behind.squares, least).all())


def _alike(a: ProbeComparison, b: ProbeComparison) -> bool:
    return a.probe == b.probe and len(a.only_served_active) == len(b.only_served_active)
