"""Cutting a version's closed windows into batches: what one step of the sequential tests takes in.

Every window is used at most once and batches follow each other in time, which is what the alarm budget asks for. A
batch is as few windows as hold enough requests; how many that are depends on the counts of requests alone, never on
what they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Span:
    """One window's span and its requests."""

    start: datetime
    end: datetime
    n: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive windows, from the first's start to the last's end."""

    start: datetime
    end: datetime
    n: int
    windows: int

    @property
    def days(self) -> float:
        """What the alarm budget counts."""
        return (self.end - self.start) / timedelta(days=1)


def cut(spans: Iterable[Span], min_requests: int, most_windows: int) -> Iterator[Batch]:
    """Batches of at least ``min_requests`` from windows in order of time; what is left at the end waits for more.

    Where ``most_windows`` hold too few requests, the oldest of them is passed over. A window that begins before the
    last batch has ended, as where agents cut windows of unlike lengths, is passed over too: its time is used.
    """
    held: list[Span] = []
    used: datetime | None = None
    for span in spans:
        if used is not None and span.start < used:
            continue
        held = [*held, span][-most_windows:]
        if sum(one.n for one in held) >= min_requests:
            used = max(one.end for one in held)
            yield Batch(held[0].start, used, sum(one.n for one in held), len(held))
            held = []


def disjoint(spans: Iterable[Span]) -> list[Span]:
    """Windows that overlap, as where agents cut them at unlike lengths, joined into one; ``spans`` by start."""
    joined: list[Span] = []
    for span in spans:
        if joined and span.start < joined[-1].end:
            last = joined.pop()
            span = Span(last.start, max(last.end, span.end), last.n + span.n)
        joined.append(span)
    return joined


def waiting(spans: Iterable[Span], most_windows: int) -> int:
    """Requests in the newest ``most_windows`` windows: what is there where no batch is."""
    return sum(span.n for span in list(spans)[-most_windows:])
