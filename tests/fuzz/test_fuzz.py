"""A short run over every decoder; `make fuzz` runs as long as you like."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs

from tests.fuzz import protobuf, wires
from tests.fuzz.mutations import of_json
from tests.fuzz.runner import Hang, Tally, Target, check, generated, run
from tests.fuzz.targets import targets

ROUNDS = 256
FAST = Path("/dev/shm")  # fsync costs nothing there


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as made:
        yield Path(made)


@pytest.mark.filterwarnings("ignore")
def test_decoders_give_a_value_or_their_own_error(folder: Path) -> None:
    with capture_logs():
        tallies = run(targets(folder), 0, lambda done: done < ROUNDS)
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    assert not failures, f"{failures[0].target}: {failures[0].data!r:.2000}\n{failures[0].reason}"
    for name, tally in tallies.items():
        assert tally.inputs >= ROUNDS
        assert tally.values >= ROUNDS // 100, f"{name}: hardly any input gets past the first check"
        assert sum(tally.refused.values()) >= ROUNDS // 10, f"{name}: mutations change nothing"


def fake(decode: object, memory: int = 1 << 20) -> Target:
    return Target("fake", [b"seed"], (of_json,), decode, (KeyError,), memory)  # type: ignore[arg-type]


def reason_of(target: Target) -> str:
    tally = Tally()
    check(target, b"x", 0, tally)
    return tally.failures[0].reason if tally.failures else ""


def test_what_is_a_failure() -> None:
    def wrong(data: bytes) -> bool:
        raise ZeroDivisionError

    def refuses(data: bytes) -> bool:
        raise KeyError("documented")

    def hangs(data: bytes) -> bool:
        raise Hang("no end")

    assert "ZeroDivisionError" in reason_of(fake(wrong))
    assert "Hang" in reason_of(fake(hangs))
    assert "bytes of memory" in reason_of(fake(lambda data: len(bytearray(2 << 20)) > 0))
    assert reason_of(fake(refuses)) == ""
    assert reason_of(fake(lambda data: True)) == ""


def test_a_seed_gives_the_same_inputs(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
    first, again = targets(folder / "a"), targets(folder / "b")
    for one, other in zip(first, again, strict=True):
        assert [generated(one, 3, i) for i in range(20)] == [generated(other, 3, i) for i in range(20)], one.name
    assert generated(first[0], 3, 1) != generated(first[0], 4, 1)


def test_protobuf_is_taken_apart_and_put_together() -> None:
    for message in wires.messages():
        fields = protobuf.parse(message)
        assert fields
        assert protobuf.join(fields) == message
        assert protobuf.mutate(Random(1), message, (7,), (1.0,))
    assert protobuf.parse(b"\xff\xff") is None
