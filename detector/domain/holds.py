"""What Alertmanager knows of alerts beyond its notices: that they are held back, by whom, and that they have ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

HeldBack = Literal["", "silenced", "inhibited"]


@dataclass(frozen=True, slots=True)
class Hold:
    """A silence or another alert that kept notices of an alert back."""

    kind: Literal["silence", "inhibition"]
    id: str
    """The silence's id, or the fingerprint of the alert that inhibits."""
    by: str
    """Who made the silence, or the name of that alert."""
    comment: str
    """The silence's; empty for an inhibition."""
    since: datetime
    """When it was seen first."""


@dataclass(frozen=True, slots=True)
class OpenAlert:
    """A stored alert that may have changed without a notice."""

    id: int
    fingerprint: str
    alertname: str
    status: str
    """firing, or resolved where a reconciliation ended it."""
    starts_at: datetime
    held_back: HeldBack
    holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """What becomes of a stored alert."""

    id: int
    ends_at: datetime | None
    """None while it fires."""
    seen_at: datetime | None
    """When Alertmanager still had it; None where it has not."""
    held_back: HeldBack
    holds: tuple[Hold, ...]
