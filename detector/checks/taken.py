"""What a check takes in of the requests that came, and what it leaves out for good."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from detector.domain.batches import Batch, Span
from detector.domain.types import AlarmState, ModelVersion, Reference, Taken

LONGEST_WINDOW = timedelta(days=1)
"""Longer ones are refused when they arrive."""


class SpanStore(Protocol):
    """The part of the store that counts windows."""

    def spans(self, version_id: int, start: datetime, end: datetime) -> list[Span]: ...


def what_is_taken(
    store: SpanStore,
    version: ModelVersion,
    base: Reference,
    stored: AlarmState | None,
    since: datetime,
    batches: Sequence[Batch],
) -> Taken:
    """What the batches take in and leave out of all windows that begin before they end: what no later check sees."""
    end = batches[-1].end
    spans = [span for span in store.spans(version.id, since, end + LONGEST_WINDOW) if span.start < end]
    inside = sum(span.n for span in spans)
    checked = sum(span.n for span in spans if any(b.start <= span.start and span.end <= b.end for b in batches))
    begin = version.first_seen if stored is None else stored.last.end
    own = base.made_of(version.id)
    behind = sum(
        span.n
        for span in (store.spans(version.id, begin, since + LONGEST_WINDOW) if begin < since else ())
        if span.start < since and not (own and base.start <= span.start and span.end <= base.end)
    )
    return Taken(since, end, checked, inside - checked + behind, behind)
