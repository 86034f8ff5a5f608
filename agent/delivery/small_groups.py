"""No window speaks of fewer requests than the minimum group: what is too small waits for more, or never leaves. Pure.

A probe with too few requests in a window is carried over: its summary is merged into that of the same probe in the next
window, so those requests are counted once, in a window later than they arrived in. Windows keep their span and stay
disjoint; a start moved back would overlap other probes' windows and other agents', and the detector passes over what
overlaps. Each probe decides for itself, for groups of probes take turns and each has requests of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from agent import summary
from agent.delivery.versions import Version
from agent.delivery.windowing import ClosedWindow, Slot
from agent.options import SECTION, Option
from agent.summary import Summary
from agent.summary.coarse import coarsened

WithheldReason = Literal["stopping", "version_gone", "stale", "width_changed"]
"""A metric label: bounded."""


@settings(frozen=True, slots=True, config=SECTION)
class MinGroup:
    """From how many requests on a probe is told of, and how long fewer may wait for more."""

    requests: Annotated[int, Option("min_group")] = Field(default=20, ge=1)
    """Fewest requests that a layer is told of; fewer wait for its next window."""
    carry_seconds: float = Field(default=86400.0, ge=0)
    """How long they wait for more at the most."""


DEFAULT_GROUP = MinGroup()


@dataclass(frozen=True, slots=True)
class Withheld:
    """Requests that will never be told of, by probe (or, of a comparison, also by "" for the whole)."""

    version: Version
    reason: WithheldReason
    requests: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Waiting:
    slot: Slot
    """Of the newest of its requests."""
    since_ms: int
    """Start of the window of the oldest."""
    summary: Summary


@dataclass(slots=True)
class Passed:
    """What is to become of a closed window."""

    version: Version
    windows: list[ClosedWindow] = field(default_factory=list)
    """What leaves, as a rule one window."""
    carried: dict[str, int] = field(default_factory=dict)
    """Requests of this window that wait for more, by probe."""
    withheld: list[Withheld] = field(default_factory=list)
    failed: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Requests by probe that could not be put together, and the type of the error."""
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    """What waits of the version from then on, by probe."""


class SmallWindows:
    """Summaries of too few requests, by model version and probe. Not thread-safe: it belongs to the replay thread.

    `weigh` changes nothing; once what it says is in the outbox, `settle` makes it so. So a window whose delivery fails
    can be weighed again, and no request counts twice.
    """

    def __init__(self, group: MinGroup) -> None:
        self._group = group
        self._waiting: dict[Version, dict[str, _Waiting]] = {}

    def weigh(self, closed: ClosedWindow) -> Passed:
        """What of a window, and of what waited for it, rests on enough requests; never raises for a single probe."""
        slot = closed.slot
        passed = Passed((slot.model, slot.version, slot.digest))
        passed.waiting = dict(self._waiting.get(passed.version, {}))
        ready: dict[Slot, dict[str, Summary]] = {}
        for name, fresh in closed.summaries.items():
            before = passed.waiting.pop(name, None)
            try:
                now = self._together(passed, name, before, _Waiting(slot, slot.start_ms, fresh))
                if now.summary.n >= self._group.requests:
                    ready.setdefault(now.slot, {})[name] = coarsened(now.summary, self._group.requests)
                    continue
            except Exception as error:  # it may cost this probe; the type alone, for a text may quote values
                lost = fresh.n + (before.summary.n if before is not None else 0)
                passed.failed[name] = (lost, type(error).__name__)
                continue
            if now.summary.n:
                passed.waiting[name] = now
                passed.carried |= {name: fresh.n} if fresh.n else {}
        passed.windows.extend(
            ClosedWindow(where, closed.probes, ready[where]) for where in sorted(ready, key=lambda one: one.start_ms)
        )
        return passed

    def settle(self, passed: Passed) -> None:
        """What was weighed last has left."""
        self._waiting.pop(passed.version, None)
        if passed.waiting:
            self._waiting[passed.version] = passed.waiting

    def withhold(self, reason: WithheldReason, which: Callable[[Version], bool]) -> list[Withheld]:
        """Forgets what waits of the versions that ``which`` says."""
        gone = [version for version in self._waiting if which(version)]
        return [
            Withheld(version, reason, {name: one.summary.n for name, one in self._waiting.pop(version).items()})
            for version in gone
        ]

    def _together(self, passed: Passed, name: str, before: _Waiting | None, now: _Waiting) -> _Waiting:
        """Both, where they can be told of together; else the newer, and the other is withheld."""
        if before is None:
            return now
        fits = before.summary.channels == now.summary.channels
        if fits and now.slot.start_ms - before.since_ms <= self._group.carry_seconds * 1000:
            return _joined(before, now)
        reason: WithheldReason = "stale" if fits else "width_changed"
        passed.withheld.append(Withheld(passed.version, reason, {name: before.summary.n}))
        return now


def _joined(before: _Waiting, now: _Waiting) -> _Waiting:
    """Both, in the later of their windows: requests that were replayed late may close a window again."""
    return _Waiting(
        max(before.slot, now.slot, key=lambda slot: slot.start_ms),
        min(before.since_ms, now.since_ms),
        summary.merge(before.summary, now.summary),
    )
