"""Detectors on the same streams at the same false-alarm rate: how often and how soon each finds a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tests.statistics.peers.exchange import Floats, Scores

FALSE_ALARMS = 0.05
"""Share of healthy streams in which a detector may alarm, over their whole length."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One detector on one kind of change."""

    found: float
    """Share of streams with an alarm before their end."""
    delay: float
    """Mean requests until the alarm; a stream without one counts with its whole length."""
    streams: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One detector in one family of streams."""

    detector: str
    healthy_streams: int
    threshold: float
    false_alarms: float
    """At the matched threshold: at most `FALSE_ALARMS`."""
    shipped_false_alarms: float | None
    """At the defaults; None where there is no default to compare with."""
    outcomes: Mapping[str, Outcome]
    seconds_per_million: float
    """Seconds for a million values (requests times channels) of one stream after the other."""


def match(detector: str, healthy: Scores, changed: Mapping[str, Scores], values: int) -> Entry:
    """Sets the threshold by the healthy streams and judges the changed ones.

    ``values`` are those that the healthy scores' seconds were spent on.
    """
    peaks = np.sort(healthy.values.max(axis=1))[::-1]
    # The smallest threshold that at most so many healthy streams reach; scores may tie.
    allowed = int(FALSE_ALARMS * len(peaks))
    threshold = float(np.nextafter(peaks[allowed], np.inf))
    shipped = None if np.isnan(healthy.shipped) else float((peaks >= healthy.shipped).mean())
    return Entry(
        detector,
        len(peaks),
        threshold,
        float((peaks >= threshold).mean()),
        shipped,
        {name: judge(scores, threshold) for name, scores in changed.items()},
        healthy.seconds / values * 1e6,
    )


def judge(scores: Scores, threshold: float) -> Outcome:
    """Detection rate and delay at a threshold."""
    reached = np.asarray(scores.values >= threshold)
    found = np.asarray(reached.any(axis=1))
    delays: Floats = np.where(found, scores.times[reached.argmax(axis=1)], scores.times[-1]).astype(np.float64)
    return Outcome(float(found.mean()), float(delays.mean()), len(found))
