"""Batches: every window at most once, in order, decided by counts alone."""

from __future__ import annotations

import itertools
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from detector.domain.batches import Batch, Span, cut, disjoint, waiting
from tests.detector.fakes import START

MINUTE = timedelta(minutes=1)


def spans(*n: int) -> list[Span]:
    return [Span(START + i * MINUTE, START + (i + 1) * MINUTE, count) for i, count in enumerate(n)]


def test_as_few_windows_as_hold_enough_and_the_rest_waits() -> None:
    found = list(cut(spans(250, 90, 90, 90, 90), 200, 12))
    assert found == [
        Batch(START, START + MINUTE, 250, 1),
        Batch(START + MINUTE, START + 4 * MINUTE, 270, 3),
    ]
    assert found[1].days == 3 / 1440
    assert list(cut([], 200, 12)) == []


def test_thin_windows_are_passed_over_from_the_oldest() -> None:
    assert [b.start for b in cut(spans(50, 50, 150, 100), 200, 2)] == [START + MINUTE]
    assert waiting(spans(50, 60, 70), 2) == 130


def test_a_window_whose_time_is_used_is_passed_over() -> None:
    long = Span(START, START + 5 * MINUTE, 500)
    mixed = sorted([*spans(300, 300, 300, 300, 300, 300), long], key=lambda span: (span.start, span.end))
    starts = [(b.start, b.end) for b in cut(mixed, 200, 12)]
    assert starts == [(START + i * MINUTE, START + (i + 1) * MINUTE) for i in range(6)]


def test_windows_that_overlap_are_joined() -> None:
    long = Span(START, START + 2 * MINUTE, 500)
    joined = disjoint(sorted([*spans(100, 100, 100), long], key=lambda span: (span.start, span.end)))
    assert joined == [Span(START, START + 2 * MINUTE, 700), Span(START + 2 * MINUTE, START + 3 * MINUTE, 100)]


@given(st.lists(st.integers(0, 400), max_size=40), st.integers(1, 500), st.integers(1, 8))
def test_batches_are_disjoint_in_order_and_full(counts: list[int], enough: int, most: int) -> None:
    found = list(cut(spans(*counts), enough, most))
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert all(b.n >= enough and 1 <= b.windows <= most for b in found)
    assert sum(b.n for b in found) <= sum(counts)
