"""The choice of a reference, and its command."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from click.testing import CliRunner, Result

from detector import reference
from detector.reference_choice import NoReference, ensure, from_first_requests, from_previous, from_windows, same_probes
from detector.store import StoreError
from detector.store.types import ModelVersion, Reference
from tests.detector.fakes import START, WINDOW, FakeStore, probe, rectified, summarise

PROBES = [probe("image", 0, 1, "input"), probe("relu", 1, 8)]
LATER = START + timedelta(hours=1)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def fill(store: FakeStore, version: ModelVersion, windows: int, n: int = 250) -> None:
    rng = np.random.default_rng(version.id)
    for i in range(windows):
        store.add_window(version, {"relu": summarise(rectified(rng, n, 8))}, START + i * WINDOW)


def test_the_first_requests_make_the_reference_once(store: FakeStore) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, 5)
    made = ensure(store, version, 600, LATER)
    assert made is not None
    assert (made.origin, made.n, made.start, made.end) == ("first_requests", 750, START, START + 3 * WINDOW)
    assert made.summaries["relu"].n == 750
    assert ensure(store, version, 10, LATER) == made
    assert len(store.saved_references) == 1


def test_too_few_requests_make_none(store: FakeStore) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, 2)
    assert ensure(store, version, 600, LATER) is None
    assert ensure(store, version, 500, START + WINDOW) is None  # the second window has not closed
    with pytest.raises(NoReference, match="has 500 of 600 requests"):
        from_first_requests(store, version, 600, LATER)


def test_a_successor_takes_over_the_reference_even_through_several_versions(store: FakeStore) -> None:
    first, second, third = (store.add_version(name, PROBES) for name in "123")
    fill(store, first, 3)
    made = ensure(store, third, 600, LATER)
    assert made is not None
    assert (made.version_id, made.origin, made.source_version_id) == (third.id, "previous_version", first.id)
    assert [one.version_id for one in store.saved_references] == [first.id, second.id, third.id]


def test_a_successor_with_other_probes_waits_for_its_own_requests(store: FakeStore) -> None:
    fill(store, store.add_version("1", PROBES), 3)
    second = store.add_version("2", [PROBES[0], probe("relu", 1, 16)])
    with pytest.raises(NoReference, match="probes of 1 and 2 differ"):
        from_previous(store, second, 600, LATER)
    assert ensure(store, second, 600, LATER) is None
    fill(store, second, 3)
    made = ensure(store, second, 600, LATER)
    assert made is not None
    assert made.origin == "first_requests"


def test_a_first_version_has_none_to_take_over(store: FakeStore) -> None:
    version = store.add_version("1", PROBES)
    with pytest.raises(NoReference, match="digits@1 has no version before it"):
        from_previous(store, version, 600, LATER)
    second = store.add_version("2", PROBES)
    with pytest.raises(NoReference, match="version 1 has no reference"):
        from_previous(store, second, 600, LATER)


def test_windows_can_be_chosen(store: FakeStore) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, 5)
    made = from_windows(store, version, START + WINDOW - timedelta(seconds=1), START + 3 * WINDOW)
    assert (made.origin, made.start, made.n) == ("windows", START + WINDOW, 500)
    with pytest.raises(NoReference, match="no requests"):
        from_windows(store, version, LATER, LATER + WINDOW)
    with pytest.raises(NoReference, match="empty"):
        from_windows(store, version, LATER, LATER)


def test_probes_are_the_same_whatever_their_order_and_where_channels_are_unknown() -> None:
    assert same_probes(PROBES, PROBES[::-1])
    assert same_probes(PROBES, [PROBES[0], probe("relu", 1, None)])
    assert not same_probes(PROBES, PROBES[:1])
    assert not same_probes(PROBES, [PROBES[0], probe("relu", 1, 9)])


class Door(FakeStore):
    """The fake, with what only the command asks for."""

    def model_version(self, model: str, version: str | None) -> ModelVersion | None:
        known = [one for one in self.known.values() if one.model == model and version in (None, one.version)]
        return known[-1] if known else None

    def references(self, version_id: int) -> list[Reference]:
        return [one for one in reversed(self.saved_references) if one.version_id == version_id]

    def close(self) -> None:
        self.windows.clear()


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    door = Door()
    fill(door, door.add_version("1", PROBES), 5)
    monkeypatch.setattr(reference, "Store", lambda url: door)
    return door


def run(*arguments: str) -> Result:
    environment = {"RELUSCOPE_DATABASE_URL": "postgresql+psycopg://x@localhost/x"}
    return CliRunner().invoke(reference.command, arguments, env=environment)


def test_the_command_sets_from_windows_and_prints_a_table(door: Door) -> None:
    result = run("set", "--model", "digits", "--from", "2026-01-31T12:01:00", "--to", "2026-01-31T12:03:00Z")
    assert result.exit_code == 0, result.output
    assert "References of digits@1" in result.output
    assert "2026-01-31T12:01:00+00:00" in result.output
    assert [one.n for one in door.saved_references] == [500]


def test_the_command_makes_one_from_the_first_requests_and_lists_the_newest_first(door: Door) -> None:
    from_windows(door, door.known[1], START, START + WINDOW)
    windows = dict(door.windows)
    assert run("auto", "--model", "digits", "--requests", "700").exit_code == 0
    door.windows.update(windows)
    result = run("show", "--model", "digits", "--version", "1")
    lines = result.output.splitlines()
    assert ["first_requests" in line for line in lines[2:]] == [True, False]
    assert ["  yes  " in line for line in lines[2:]] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "--model", "digits"], "digits@1 has no reference yet"),
        (["show", "--model", "letters", "--version", "3"], "letters@3 is unknown"),
        (["auto", "--model", "digits", "--requests", "9000"], "has 1250 of 9000 requests"),
        (["auto", "--model", "digits", "--source", "previous-version"], "has no version before it"),
        (["set", "--model", "digits", "--from", "noon", "--to", "2026-01-31"], "'noon' is no ISO 8601 time"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(door: Door, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output


def test_an_unreachable_database_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> FakeStore:
        raise StoreError("the database does not answer")

    monkeypatch.setattr(reference, "Store", refuse)
    result = run("show", "--model", "digits")
    assert (result.exit_code, result.output) == (1, "Error: the database does not answer\n")
