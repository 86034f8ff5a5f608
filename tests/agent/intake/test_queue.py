"""The bounded queue between event loop and replay."""

from __future__ import annotations

import threading
import time

import pytest

from agent.intake.queue import ByteQueue


def test_first_in_first_out_and_counts() -> None:
    queue: ByteQueue[int] = ByteQueue(max_bytes=100, max_items=10)
    assert all(queue.offer(i, 10) for i in range(5))
    assert queue.depth() == (5, 50)
    assert queue.take(3, 0) == [0, 1, 2]
    assert queue.take(3, 0) == [3, 4]
    assert queue.depth() == (0, 0)


def test_refuses_the_new_when_full_of_bytes_or_items() -> None:
    queue: ByteQueue[str] = ByteQueue(max_bytes=100, max_items=2)
    assert not queue.offer("too large for any queue", 101)
    assert queue.offer("a", 60)
    assert not queue.offer("b", 41)
    assert queue.offer("c", 40)
    assert not queue.offer("d", 0)
    assert queue.take(9, 0) == ["a", "c"]


def test_refusals_are_counted_and_fill_is_of_what_is_scarcer() -> None:
    queue: ByteQueue[str] = ByteQueue(max_bytes=100, max_items=4)
    queue.offer("a", 10)
    assert (queue.refused, queue.fill) == (0, 0.25)
    queue.offer("b", 80)
    assert queue.fill == 0.9
    queue.offer("c", 11)
    assert queue.refused == 1
    queue.take(9, 0)
    assert queue.fill == 0.0


def test_take_waits_for_the_first_item_only() -> None:
    queue: ByteQueue[int] = ByteQueue(100, 10)
    start = time.monotonic()
    assert queue.take(1, 0.05) == []
    assert 0.04 < time.monotonic() - start < 1
    threading.Timer(0.05, queue.offer, (1, 1)).start()
    assert queue.take(5, 5) == [1]


def test_close_wakes_the_taker_and_keeps_what_is_there() -> None:
    queue: ByteQueue[int] = ByteQueue(100, 10)
    threading.Timer(0.05, queue.close).start()
    start = time.monotonic()
    assert queue.take(1, 5) == []
    assert time.monotonic() - start < 2
    assert not queue.offer(1, 1)


def test_bounds_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ByteQueue(0, 1)


def test_many_threads_lose_and_double_nothing() -> None:
    queue: ByteQueue[int] = ByteQueue(1 << 30, 1 << 20)
    writers = [
        threading.Thread(target=lambda k=k: [queue.offer(k * 1000 + i, 3) for i in range(1000)]) for k in range(4)
    ]
    for writer in writers:
        writer.start()
    got: list[int] = []
    while len(got) < 4000:
        got += queue.take(100, 1)
    assert sorted(got) == list(range(4000))
    assert queue.depth() == (0, 0)
