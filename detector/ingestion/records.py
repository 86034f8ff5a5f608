"""Messages as the broker gave them, and what is said where they cannot be taken now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Record:
    """One message as the broker gave it."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    appended: datetime | None = None
    """When the broker took it, where the broker says so; no time that the sender gave."""


class RetryLater(Exception):
    """Infrastructure failed; everything from the partition's stored offset on has to be read again."""

    def __init__(self, reason: str, message: str) -> None:
        """``reason`` is a short bounded word, used as a metric label."""
        super().__init__(message)
        self.reason = reason
