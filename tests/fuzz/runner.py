"""Feeds mutated messages to decoders, and measures what each input costs. Deterministic by seed."""

from __future__ import annotations

import resource
import signal
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import FrameType

from tests.fuzz.mutations import Mutation

MAX_BYTES = 1 << 18
"""Larger inputs are cut: what they could show, smaller ones show too."""
SLOW_SECONDS = 1.0
"""Of processor time, for one input."""
HANG_SECONDS = 20.0
MEASURED = 16
"""Memory is traced for one input in so many: tracing slows Python down."""


@dataclass(frozen=True)
class Target:
    """A decoder, and what may come of it."""

    name: str
    seeds: Sequence[bytes]
    """Valid messages."""
    mutations: Sequence[Mutation]
    decode: Callable[[bytes], bool]
    """Returns whether there was a value, and checks it by assertions."""
    errors: tuple[type[Exception], ...]
    """The decoder's own, documented."""
    memory: int = 32 << 20
    """Most bytes that one input may take."""


@dataclass(frozen=True)
class Failure:
    """An input that broke the promise."""

    target: str
    number: int
    data: bytes
    reason: str


@dataclass
class Tally:
    """Of one target."""

    inputs: int = 0
    values: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    """Processor seconds of one input."""
    largest: int = 0
    """Bytes allocated for one input at the highest, of those traced."""
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)


class Hang(BaseException):
    """An input takes for ever. No Exception, so that no decoder catches it."""


def generated(target: Target, seed: int, number: int) -> bytes:
    """The input of that number: a valid message with one to five changes."""
    random = Random(f"{seed}/{target.name}/{number}")
    data = random.choice(target.seeds)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        data = random.choice(target.mutations)(random, data, target.seeds)[:MAX_BYTES]
    return data


def check(target: Target, data: bytes, number: int, tally: Tally) -> None:
    """Runs one input and notes what came of it."""
    traced = number % MEASURED == 0
    high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if traced:
        tracemalloc.start(1)
    begin = time.thread_time()
    reason = ""
    try:
        if target.decode(data):
            tally.values += 1
        else:
            tally.refused["none"] += 1
    except target.errors as error:
        tally.refused[type(error).__name__] += 1
    except (Exception, Hang):
        reason = traceback.format_exc()
    seconds = time.thread_time() - begin
    peak = 0
    if traced:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - high) * 1024
    tally.inputs += 1
    tally.seconds += seconds
    tally.largest = max(tally.largest, peak)
    if not traced:
        tally.slowest = max(tally.slowest, seconds)
    if max(peak, grown) > target.memory:
        reason = reason or f"took {max(peak, grown)} bytes of memory, more than {target.memory}"
    if seconds > SLOW_SECONDS * (10 if traced else 1):
        reason = reason or f"took {seconds:.2f} s, more than {SLOW_SECONDS}"
    if reason:
        tally.failures.append(Failure(target.name, number, data, reason))


def run(targets: Sequence[Target], seed: int, more: Callable[[int], bool], chunk: int = 64) -> dict[str, Tally]:
    """Takes targets in turn, `chunk` inputs each, as long as `more(inputs so far of each)`. Begins with the seeds."""
    tallies = {target.name: Tally() for target in targets}
    for target in targets:
        for place, data in enumerate(target.seeds):
            with _limit():
                check(target, data, -1 - place, tallies[target.name])
        assert tallies[target.name].values, f"no seed of {target.name} is valid: {tallies[target.name]}"
    done = 0
    while more(done):
        for target in targets:
            for number in range(done, done + chunk):
                data = generated(target, seed, number)
                with _limit():
                    check(target, data, number, tallies[target.name])
        done += chunk
    return tallies


@contextmanager
def _limit() -> Iterator[None]:
    """Raises Hang in the block after a while; of use in the main thread only."""

    def hang(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f"no end after {HANG_SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
