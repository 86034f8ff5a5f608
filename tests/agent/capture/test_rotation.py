"""Groups take turns: batch by batch where all sessions fit, else in turns that are long beside building."""

from __future__ import annotations

import pytest

from agent.capture.rotation import Rotation, turn_is_over

GROUPS = (frozenset("a"), frozenset("b"), frozenset("c"))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Sessions:
    """Builds strings, and says which were alive when another was built."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.built: list[str] = []
        self._clock = clock
        self._seconds = seconds

    def __call__(self, group: frozenset[str]) -> str:
        self._clock.now += self._seconds
        self.built.append("".join(group))
        return self.built[-1]


def test_resident_sessions_take_turns_batch_by_batch_and_are_built_once() -> None:
    clock = Clock()
    sessions = Sessions(clock, 1)
    rotation = Rotation(GROUPS, sessions, resident=True, clock=clock)
    seen = []
    for _ in range(7):
        seen.append(rotation.current())
        rotation.ran(0.001)
    assert "".join(seen) == "abcabca"
    assert sessions.built == ["a", "b", "c"]


def test_where_one_fits_a_turn_lasts_twenty_times_the_building() -> None:
    clock = Clock()
    sessions = Sessions(clock, 1)
    rotation = Rotation(GROUPS, sessions, resident=False, clock=clock)
    busy, turns = 0.0, []
    for _ in range(60):
        turns.append(rotation.current())
        clock.now += 1
        busy += 1
        group = rotation.group
        rotation.ran(busy)
        if rotation.group != group:
            busy = 0
    assert "".join(turns) == "a" * 20 + "b" * 20 + "c" * 20
    assert sessions.built == ["a", "b", "c"]


def test_only_one_session_lives_where_one_fits() -> None:
    rotation = Rotation(GROUPS, lambda group: object(), resident=False, clock=Clock())
    for _ in range(3):
        rotation.current()
        rotation.ran(1e9)
        assert len(rotation._sessions) == 1


@pytest.mark.parametrize(
    ("build", "busy", "elapsed", "over"),
    [(1, 19, 99, False), (1, 20, 20, True), (1, 0.1, 100, True), (0, 0, 0, True)],
)
def test_a_turn_ends_by_its_work_or_where_traffic_is_thin_by_the_clock(
    build: float, busy: float, elapsed: float, over: bool
) -> None:
    assert turn_is_over(build, busy, elapsed) is over


def test_a_session_that_cannot_be_built_raises_and_is_tried_again() -> None:
    failures = [RuntimeError("no room")]

    def build(group: frozenset[str]) -> str:
        if group == GROUPS[1] and failures:
            raise failures.pop()
        return "".join(group)

    rotation = Rotation(GROUPS, build, resident=True, clock=Clock())
    rotation.ran(1)
    with pytest.raises(RuntimeError, match="no room"):
        rotation.current()
    assert rotation.current() == "b"
