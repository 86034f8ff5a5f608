"""Whom an outbox tells what went wrong, and where it has its clock and its chance from."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Watch:
    """All are called under the outbox' lock: they may not block, and may not call it."""

    on_drop: Callable[[], None] = _nothing
    """For each message that was refused or lost."""
    on_error: Callable[[], None] = _nothing
    """For each attempt to read or write that failed."""
    on_damage: Callable[[], None] = _nothing
    """For each damaged file that was set aside."""
    clock: Callable[[], float] = time.time
    """Unix seconds."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds, for the pauses between attempts."""
    random_bits: Callable[[int], int] = secrets.randbits
    """A random integer of so many bits, for the boot epoch."""


UNWATCHED = Watch()
