"""Work in pieces on every core, with progress lines; a piece's random numbers depend on its own number alone."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def spread(
    what: str, work: Callable[[Piece], Result], pieces: Sequence[Piece], workers: int, every: float = 10.0
) -> Iterator[Result]:
    """Results in the pieces' order; ``work`` is a module's function, ``every`` the seconds between progress lines."""
    begun = said = time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for done, result in enumerate(pool.map(work, pieces), start=1):
            now = time.monotonic()
            if now - said >= every or done == len(pieces):
                said = now
                print(f"{what}: {done} of {len(pieces)}, {now - begun:.0f} s", file=sys.stderr, flush=True)
            yield result


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
