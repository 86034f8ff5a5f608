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
from agent.delivery.windowing import ClosedWindow, Slot
from agent.options import SECTION, Option
from agent.summary import Summary
from agent.summary.coarse import coarsened

Version = tuple[str, str, str]
"""Model, version, digest."""
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


@dataclass(slots=True)
class Passed:
    """What became of a closed window."""

    windows: list[ClosedWindow] = field(default_factory=list)
    """What leaves, as a rule one window."""
    carried: dict[str, int] = field(default_factory=dict)
    """Requests of this window that wait for more, by probe."""
    withheld: list[Withheld] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Waiting:
    slot: Slot
    """Of the newest of its requests."""
    since_ms: int
    """Start of the window of the oldest."""
    summary: Summary


class SmallWindows:
    """Summaries of too few requests, by model version and probe. Not thread-safe: it belongs to the replay thread."""

    def __init__(self, group: MinGroup) -> None:
        self._group = group
        self._waiting: dict[Version, dict[str, _Waiting]] = {}

    def pass_on(self, closed: ClosedWindow) -> Passed:
        """What of a window, and of what waited for it, rests on enough requests; the rest waits from now on."""
        slot = closed.slot
        version = (slot.model, slot.version, slot.digest)
        waiting = self._waiting.setdefault(version, {})
        passed, ready = Passed(), dict[Slot, dict[str, Summary]]()
        for name, fresh in closed.summaries.items():
            now = _Waiting(slot, slot.start_ms, fresh)
            before = waiting.pop(name, None)
            if before is not None and (reason := self._unfit(before, now)) is not None:
                passed.withheld.append(Withheld(version, reason, {name: before.summary.n}))
            elif before is not None:
                now = _joined(before, now)
            if now.summary.n >= self._group.requests:
                ready.setdefault(now.slot, {})[name] = coarsened(now.summary, self._group.requests)
            elif now.summary.n:
                waiting[name] = now
                passed.carried |= {name: fresh.n} if fresh.n else {}
        if not waiting:
            del self._waiting[version]
        passed.windows.extend(
            ClosedWindow(where, closed.probes, ready[where]) for where in sorted(ready, key=lambda one: one.start_ms)
        )
        return passed

    def withhold(self, reason: WithheldReason, which: Callable[[Version], bool]) -> list[Withheld]:
        """Forgets what waits of the versions that ``which`` says."""
        gone = [version for version in self._waiting if which(version)]
        return [
            Withheld(version, reason, {name: one.summary.n for name, one in self._waiting.pop(version).items()})
            for version in gone
        ]

    def _unfit(self, before: _Waiting, now: _Waiting) -> WithheldReason | None:
        """Why two summaries of a probe cannot be told of together; None where they can."""
        if now.slot.start_ms - before.since_ms > self._group.carry_seconds * 1000:
            return "stale"
        return "width_changed" if before.summary.channels != now.summary.channels else None


def _joined(before: _Waiting, now: _Waiting) -> _Waiting:
    """Both, in the later of their windows: requests that were replayed late may close a window again."""
    return _Waiting(
        max(before.slot, now.slot, key=lambda slot: slot.start_ms),
        min(before.since_ms, now.since_ms),
        summary.merge(before.summary, now.summary),
    )
