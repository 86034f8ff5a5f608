"""Comparisons of too few requests wait for more, as windows do: see `agent.delivery.small_groups`. Pure.

A comparison's own counts and each of its probes decide for themselves, for groups of probes are fetched in turns. What
is carried over is added to the next window's comparison with the same baseline. Holdouts are labelled sets, no traffic:
they are not for here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from agent import wire
from agent.delivery.small_groups import MinGroup, Version, Withheld, WithheldReason
from agent.summary.coarse import rounded_up
from agent.wire import Comparison, ProbeComparison

WHOLE = ""
"""Stands for a comparison's own counts where requests are listed by probe."""

_Key = tuple[Version, str, str, str, str, str]
"""Version; kind, baseline, its digest, reference, provider."""
_Span = tuple[int, int]


@dataclass(slots=True)
class PassedComparison:
    """What became of a closed comparison."""

    comparison: Comparison | None = None
    """What leaves."""
    carried: dict[str, int] = field(default_factory=dict)
    """Requests of this window that wait for more, by probe."""
    withheld: list[Withheld] = field(default_factory=list)


@dataclass(slots=True)
class _Waiting:
    span: _Span
    """The newest window."""
    counts: Comparison | None = None
    """Without probes."""
    counts_since: int = 0
    probes: dict[str, tuple[ProbeComparison, int]] = field(default_factory=dict)
    """With the start of the window of the oldest request."""

    def requests(self) -> dict[str, int]:
        listed = {name: item.n for name, (item, _) in self.probes.items()}
        return listed if self.counts is None else {WHOLE: self.counts.n, **listed}


class SmallComparisons:
    """Comparisons of too few requests. Not thread-safe: it belongs to the thread that compares."""

    def __init__(self, group: MinGroup) -> None:
        self._group = group
        self._waiting: dict[_Key, _Waiting] = {}

    def pass_on(self, version: Version, body: Comparison) -> PassedComparison:
        """What of a comparison, and of what waited for it, rests on enough requests; the rest waits from now on."""
        key = (version, body.kind, body.baseline, body.baseline_digest, body.reference, body.provider)
        before = self._waiting.pop(key, None) or _Waiting((body.start_ms, body.end_ms))
        span = max(before.span, (body.start_ms, body.end_ms))
        blank = replace(wire.probes_only(body), probes=(), start_ms=span[0], end_ms=span[1])
        passed, after = PassedComparison(), _Waiting(span)
        counts = self._counts(version, body, before, blank, passed, after)
        probes = [self._probe(version, item, body.start_ms, before, passed, after) for item in body.probes]
        after.probes |= before.probes  # those without a turn in this window
        if after.counts is not None or after.probes:
            self._waiting[key] = after
        ready = tuple(replace(item, max_abs_error=rounded_up(item.max_abs_error)) for item in probes if item)
        if counts is not None or ready:
            passed.comparison = replace(counts or blank, probes=ready)
        return passed

    def withhold(self, reason: WithheldReason, which: Callable[[Version], bool]) -> list[Withheld]:
        """Forgets what waits of the versions that ``which`` says."""
        gone = [key for key in self._waiting if which(key[0])]
        return [Withheld(key[0], reason, self._waiting.pop(key).requests()) for key in gone]

    def _counts(
        self,
        version: Version,
        body: Comparison,
        before: _Waiting,
        blank: Comparison,
        passed: PassedComparison,
        after: _Waiting,
    ) -> Comparison | None:
        """The comparison's own counts, without probes, where they rest on enough requests."""
        own, since = replace(body, probes=(), start_ms=blank.start_ms, end_ms=blank.end_ms), body.start_ms
        if before.counts is not None:
            if self._is_stale(before.counts_since, body.start_ms):
                passed.withheld.append(Withheld(version, "stale", {WHOLE: before.counts.n}))
            else:
                same = replace(before.counts, start_ms=blank.start_ms, end_ms=blank.end_ms)
                own, since = wire.merge(same, own), min(since, before.counts_since)
        if own.n >= self._group.requests:
            return own
        if own.n:
            after.counts, after.counts_since = own, since
            passed.carried |= {WHOLE: body.n} if body.n else {}
        return None

    def _probe(
        self,
        version: Version,
        item: ProbeComparison,
        start_ms: int,
        before: _Waiting,
        passed: PassedComparison,
        after: _Waiting,
    ) -> ProbeComparison | None:
        """One probe's sums, where they rest on enough requests."""
        name, fresh, since = item.probe.name, item.n, start_ms
        if name in before.probes:
            held, held_since = before.probes.pop(name)
            fits = held.probe == item.probe and len(held.only_served_active) == len(item.only_served_active)
            if not fits or self._is_stale(held_since, start_ms):
                reason: WithheldReason = "stale" if fits else "width_changed"
                passed.withheld.append(Withheld(version, reason, {name: held.n}))
            else:
                item, since = wire.merge_probes(held, item), min(since, held_since)
        if item.n >= self._group.requests:
            return item
        if item.n:
            after.probes[name] = (item, since)
            passed.carried |= {name: fresh} if fresh else {}
        return None

    def _is_stale(self, since_ms: int, start_ms: int) -> bool:
        return start_ms - since_ms > self._group.carry_seconds * 1000
