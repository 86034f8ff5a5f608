"""The choice of a reference, and its command."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import structlog
from click.testing import CliRunner, Result

from agent.summary import empty
from agent.wire import Envelope, ProbeWindow, Window, encode
from detector.domain.types import ModelVersion, Reference, ReferencePolicy
from detector.ingestion.offline import OfflineError, read, write
from detector.references import command as reference
from detector.references.choice import ensure, from_previous
from detector.references.making import NoReference, from_first_requests, from_offline, from_windows, same_probes
from detector.references.size import Need, requests_needed
from detector.statistics.design_effect import unknown
from detector.store import StoreError
from tests.detector.fakes import START, WINDOW, FakeStore, probe, rectified, summarise

PROBES = [probe("image", 0, 1, "input"), probe("relu", 1, 8)]
LATER = START + timedelta(hours=1)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command sends the log to the stderr that it has while it runs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


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
    store.policies.append(ReferencePolicy("inherit"))
    first, second, third = (store.add_version(name, PROBES) for name in "123")
    fill(store, first, 3)
    made = ensure(store, third, 600, LATER)
    assert made is not None
    assert (made.version_id, made.origin, made.source_version_id) == (third.id, "previous_version", first.id)
    assert [one.version_id for one in store.saved_references] == [first.id, second.id, third.id]


def test_a_successor_with_other_probes_waits_for_its_own_requests(store: FakeStore) -> None:
    store.policies.append(ReferencePolicy("inherit"))
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
    result = run(
        "set", "--model", "digits", "--from", "2026-01-31T12:01:00", "--to", "2026-01-31T12:04:00Z", "--effect", "0.5"
    )
    assert result.exit_code == 0, result.output
    assert "References of digits@1" in result.output
    assert "2026-01-31T12:01:00+00:00" in result.output
    assert [one.n for one in door.saved_references] == [750]
    assert re.search(r"  750  +none  ", result.output)  # too short for slots


def test_the_command_says_which_slots_a_reference_has(door: Door) -> None:
    version, rng = door.known[1], np.random.default_rng(0)
    for day in range(14):
        for minute in range(30):
            start = START + timedelta(days=1 + day, minutes=minute)
            door.add_window(version, {"relu": summarise(rectified(rng, 40, 8))}, start)
    windows = dict(door.windows)
    result = run("set", "--model", "digits", "--from", "2026-02-01", "--to", "2026-02-15")
    assert result.exit_code == 0, result.output
    assert "  1 hour, 7 weekday hours  " in result.output
    door.windows.update(windows)
    assert "  1 hour, 7 weekday hours  " in run("show", "--model", "digits").output
    for arguments in (("set", "--from", "2026-02-01", "--to", "2026-02-15"), ("auto", "--requests", "18000")):
        door.windows.update(windows)
        result = run(*arguments, "--model", "digits", "--weekday-dates", "4")
        assert "  1 hour  " in result.output
    assert "is not in the range x>=2" in run("auto", "--model", "digits", "--weekday-dates", "1").output


def test_the_command_makes_one_from_the_first_requests_and_lists_the_newest_first(door: Door) -> None:
    from_windows(door, door.known[1], START, START + WINDOW)
    windows = dict(door.windows)
    assert run("auto", "--model", "digits", "--requests", "700", "--windows", "3").exit_code == 0
    door.windows.update(windows)
    result = run("show", "--model", "digits", "--version", "1")
    policy, *lines = result.output.splitlines()
    assert policy == "Policy of digits: auto"
    assert ["first_requests" in line for line in lines[2:]] == [True, False]
    assert ["  yes  " in line for line in lines[2:]] == [True, False]


def test_the_automatic_reference_waits_for_windows_that_differ(store: FakeStore) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, 3)
    assert ensure(store, version, 250, LATER, windows=4) is None
    store.add_window(version, {"relu": empty(8)}, START + 3 * WINDOW)
    assert ensure(store, version, 250, LATER, windows=4) is None  # a window without requests differs by nothing
    fill(store, version, 5)
    made = ensure(store, version, 250, LATER, windows=4)
    assert made is not None
    assert {effect.windows for effect in made.effects.values()} == {4}


def test_a_reference_that_would_hide_the_shift_is_refused_with_the_number_of_requests_still_needed(
    store: FakeStore,
) -> None:
    version = store.add_version("1", PROBES)
    fill(store, version, 40)
    need = Need(effect=0.3, min_effect=0.1)
    with pytest.raises(NoReference, match=r"250 requests are too few: .* needs (\d+); (\d+) more") as refused:
        from_windows(store, version, START, START + WINDOW, need)
    needed, more = (int(word) for word in re.findall(r"needs (\d+); (\d+)", str(refused.value))[0])
    assert needed == 250 + more == requests_needed(need, float(unknown(8).values[0]))
    assert store.saved_references == []
    assert from_first_requests(store, version, needed + 250, LATER, need).n >= needed
    assert requests_needed(Need(0.2, 0.1), 1.0) > 3 * requests_needed(need, 1.0)
    assert requests_needed(need, 2.0) == pytest.approx(2 * requests_needed(need, 1.0), abs=2)
    with pytest.raises(ValueError, match="must be above the tolerated one"):
        Need(0.1, 0.1)


def test_a_calibration_run_makes_a_reference(store: FakeStore, tmp_path: Path) -> None:
    version = store.add_version("1", PROBES)
    file = tmp_path / "run.bin"
    write(file, (encode(message) for message in run_messages(version, 6)))
    windows = read(file, version, LATER)
    made = from_offline(store, version, windows, Need(0.3, 0.1))
    assert (made.origin, made.n, made.start, made.end) == ("offline", 1500, START, START + 6 * WINDOW)
    assert made.effects["relu"].windows == 6
    with pytest.raises(NoReference, match="differ in layers: late"):
        from_offline(store, store.add_version("2", [*PROBES, probe("late", 2, 4)]), windows)
    with pytest.raises(OfflineError, match="run the very file that is served"):
        read(file, replace(version, digest="1" * 64), LATER)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no window in it"),
        (b"\x05abc", "5 bytes, more than there are"),
        (b"\xff", "is cut off"),
        (b"\x03abc", "message 1 is unusable"),
    ],
)
def test_a_damaged_file_is_named(store: FakeStore, tmp_path: Path, content: bytes, message: str) -> None:
    version = store.add_version("1", PROBES)
    (tmp_path / "run.bin").write_bytes(content)
    with pytest.raises(OfflineError, match=message):
        read(tmp_path / "run.bin", version, LATER)
    with pytest.raises(OfflineError, match="No such file"):
        read(tmp_path / "none.bin", version, LATER)


def run_messages(version: ModelVersion, windows: int) -> list[Envelope]:
    rng = np.random.default_rng(0)
    messages = []
    for i in range(windows):
        start = int((START + i * WINDOW).timestamp() * 1000)
        layers = (summarise(rectified(rng, 250, 1, zeros=0)), summarise(rectified(rng, 250, 8)))
        body = Window(start, start + 60_000, tuple(map(ProbeWindow, PROBES, layers)))
        messages.append(Envelope("run", 1, i, version.model, version.version, version.digest, body))
    return messages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["offline", "--model", "digits", "/nowhere/run.bin"], "/nowhere/run.bin: No such file"),
        (["auto", "--model", "digits", "--effect", "0.1"], "must be above the tolerated one"),
        (["auto", "--model", "digits", "--requests", "200", "--windows", "1"], "requests are too few"),
        (
            ["auto", "--model", "digits", "--requests", "500", "--windows", "1", "--effect", "0.6"],
            "in 2 windows do not",
        ),
        (["auto", "--model", "digits", "--requests", "500"], "has 5 of 10 windows"),
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
