"""The bounded queue between event loop and replay."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


BUSY, QUIET = ("busy", "1"), ("quiet", "1")


def test_a_full_queue_pushes_out_the_newest_of_who_holds_most() -> None:
    gone: list[str] = []
    queue: ByteQueue[str] = ByteQueue(100, 10, gone.append)
    for number in range(12):
        queue.offer(f"busy{number}", 10, BUSY)
    assert (queue.refused_of(BUSY), gone) == (2, [])
    assert queue.offer("quiet0", 10, QUIET)
    assert queue.offer("quiet1", 25, QUIET)
    assert gone == ["busy9", "busy8", "busy7", "busy6"]
    assert (queue.refused, queue.refused_of(BUSY), queue.refused_of(QUIET)) == (6, 6, 0)
    assert queue.depth() == (8, 95)
    assert queue.fill_of(QUIET) == pytest.approx(0.7) and queue.fill_of(BUSY) == 1.0, "of half the queue each"


def test_nobody_is_pushed_out_for_one_who_would_hold_more() -> None:
    gone: list[str] = []
    queue: ByteQueue[str] = ByteQueue(100, 10, gone.append)
    assert queue.offer("a", 50, BUSY) and queue.offer("b", 40, QUIET)
    assert not queue.offer("c", 20, QUIET)
    assert not queue.offer("d", 90, ("third", "1"))
    assert (gone, queue.depth()) == ([], (2, 90)), "and what would not have made room enough stays"


def test_a_turn_is_of_one_key_and_counts_until_it_is_released() -> None:
    queue: ByteQueue[str] = ByteQueue(100, 10)
    for item, key in (("a", BUSY), ("b", QUIET), ("c", BUSY), ("d", BUSY)):
        assert queue.offer(item, 20, key)
    asked: list[object] = []

    def choose(keys: object) -> tuple[str, str]:
        asked.append(keys)
        return BUSY

    assert queue.take_turn(choose, lambda key, others: 2 if others else 9, 0) == (BUSY, ["a", "c"], 40)
    assert asked == [[BUSY, QUIET]], "in order of arrival"
    assert queue.depth() == (2, 80)
    assert not queue.offer("e", 21, QUIET)
    queue.release(40)
    assert queue.depth() == (2, 40)
    assert queue.take(9, 0) == ["b", "d"]
    assert queue.take_turn(choose, lambda key, others: 1, 0) is None


def test_bytes_that_are_held_leave_the_less_room() -> None:
    queue: ByteQueue[str] = ByteQueue(100, 10)
    assert queue.hold(70)
    assert not queue.hold(31)
    assert not queue.offer("a", 31)
    assert queue.offer("b", 30)
    queue.release(70)
    assert queue.depth() == (1, 30)
    queue.close()
    assert not queue.hold(1)


def test_counts_of_keys_that_are_gone_are_kept_under_no_key() -> None:
    queue: ByteQueue[str] = ByteQueue(1, 1)
    for number in range(5):
        queue.offer("too large", 2, ("m", str(number)))
    queue.keep([("m", "4")])
    assert (queue.refused, queue.refused_of(("m", "3")), queue.refused_of(("m", "4"))) == (5, 0, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.booleans()), max_size=80))
def test_whatever_comes_the_bounds_hold_and_every_item_is_accounted_for(
    steps: list[tuple[str, int, bool]],
) -> None:
    gone: list[int] = []
    queue: ByteQueue[int] = ByteQueue(100, 5, gone.append)
    offered = taken = 0
    for number, (model, nbytes, take) in enumerate(steps):
        if take:
            taken += len(queue.take(1, 0))
        else:
            offered += 1
            queue.offer(number, nbytes, (model, "1"))
        items, total = queue.depth()
        assert items <= 5 and total <= 100
        assert offered == taken + items + queue.refused
    assert len(set(gone)) == len(gone)
    taken += len(queue.take(99, 0))
    assert queue.depth() == (0, 0)
