"""A reference made while its windows are still merging, on a real Postgres: no request falls between two stools."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest

from agent.summary import Summary
from detector.domain.types import Decision
from detector.references.making import from_first_requests, from_newest
from detector.store import LostOwnership, Store
from tests.detector.builders import MINUTE, START, window


class Busy(Store):
    """Another detector applies a message for one of the windows while they are read."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.coming = [window(100, START + 4 * MINUTE)]

    def summaries(self, version_id: int, start: datetime, end: datetime) -> dict[str, Summary]:
        found = super().summaries(version_id, start, end)
        if start == START + 4 * MINUTE and self.coming:
            self.ingest("t", 1, None, 1, [self.coming.pop()])
        return found


@pytest.fixture
def store(database_url: str) -> Iterator[Busy]:
    store = Busy(database_url)
    store.ingest("t", 0, None, 1, [window(i, START + i * MINUTE) for i in range(6)])
    yield store
    store.close()


@pytest.mark.parametrize("accepted", [True, False])
def test_windows_that_grow_while_they_are_made_a_reference_are_read_again(store: Busy, accepted: bool) -> None:
    version = store.model_version("digits", "1")
    assert version is not None

    def make() -> int:
        if accepted:
            return from_newest(store, version, 60, 2, START, START + 6 * MINUTE, Decision("me", "it is so")).n
        return from_first_requests(store, version, 120, START + 6 * MINUTE).n

    with pytest.raises(LostOwnership, match=r"went from .* requests while they were made a reference: try again"):
        make()
    assert store.reference(version.id) is None
    assert make() == (60 if accepted else 120)
    inside = sum(span.n for span in store.spans(version.id, START, START + 6 * MINUTE))
    assert inside == 7 * 20
    store.ingest("t", 1, 1, 2, [window(101, START + 4 * MINUTE)])
    assert [one.late for one in store.progress()] == [20], "what comes afterwards is counted"
