"""Agents' clocks: measured by their heartbeats, and put right where they are wrong.

A message reached the broker between two moments of the detector's clock: after the last cut that did not hold it, and
before it was read. What lies outside is the error of the agent's clock; what lies inside may be delivery. Where the two
moments are far apart, as while an outage is caught up, nothing is measured and the former measure holds.

Times of an agent whose clock is off are moved by the error. Windows are moved by whole windows, so that they still line
up with those of others, and rather too late than too early: a window never ends before its last request arrived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from agent.wire import Comparison, Envelope, Heartbeat, Window
from detector.domain.agents import Heard

TOLERANCE_SECONDS = 5.0
"""Errors up to this are not corrected: windows have a grace for them."""
PRECISE = timedelta(seconds=10)
"""A message is good for a measure where it is known this well when it reached the broker."""
SAME_SECONDS = 5.0
"""Measures that differ by less are the same, so that windows are not moved to and fro."""


@dataclass(frozen=True, slots=True)
class Between:
    """When a message reached the broker, by the detector's clock."""

    earliest: datetime | None
    """None where that is not known."""
    latest: datetime

    @property
    def precise(self) -> bool:
        """Whether the two are close to each other."""
        return self.earliest is not None and self.latest - self.earliest <= PRECISE


def measured(heartbeat: Heartbeat, arrival: Between, known: float | None) -> float | None:
    """Seconds that the agent's clock is ahead, ``known`` being the former measure; None where none can be told."""
    if not arrival.precise or arrival.earliest is None:
        return known
    at = heartbeat.at_ms / 1000
    ahead, behind = at - arrival.latest.timestamp(), at - arrival.earliest.timestamp()
    error = ahead if ahead > 0 else behind if behind < 0 else 0.0
    return known if known is not None and abs(error - known) < SAME_SECONDS else error


def heard(envelope: Envelope, arrival: Between, known: float | None) -> Heard:
    """When an agent was heard by this message: its own word for it, put right, but never outside of ``arrival``."""
    body = envelope.body
    error = measured(body, arrival, known) if isinstance(body, Heartbeat) else known
    try:
        said = datetime.fromtimestamp(envelope.end_ms / 1000 - (error or 0.0), arrival.latest.tzinfo)
    except (OverflowError, ValueError, OSError):  # no clock of this world
        said = arrival.latest
    at = min(said, arrival.latest)
    if arrival.precise:
        at = arrival.latest
    elif arrival.earliest is not None:
        at = max(at, arrival.earliest)
    return Heard(at, error)


def corrected(envelope: Envelope, error: float | None) -> Envelope:
    """The message with the times that a right clock would have given it."""
    if error is None or abs(error) <= TOLERANCE_SECONDS:
        return envelope
    body = envelope.body
    shift_ms = round(-error * 1000)
    if isinstance(body, Window | Comparison):
        length = body.end_ms - body.start_ms
        moved = math.ceil(shift_ms / length) * length
        return replace(envelope, body=replace(body, start_ms=body.start_ms + moved, end_ms=body.end_ms + moved))
    if not isinstance(body, Heartbeat):
        return replace(envelope, body=replace(body, at_ms=body.at_ms + shift_ms))
    waiting = None if body.waiting_since_ms is None else max(1, body.waiting_since_ms + shift_ms)
    return replace(envelope, body=replace(body, at_ms=max(1, body.at_ms + shift_ms), waiting_since_ms=waiting))
