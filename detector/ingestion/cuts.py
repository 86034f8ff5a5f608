"""How far a partition is ingested, as a moment in time: ends of partitions, asked for and then reached.

A *cut* is a moment of the detector's clock and the ends that the partitions had then. Once all before its end is
ingested, the partition is complete to that moment. See `detector.domain.watermark`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Mark:
    """A partition held ``end`` messages, and no more, at ``at``."""

    at: datetime
    end: int


@dataclass
class Cuts:
    """The cuts of the assigned partitions that are not reached yet, one each."""

    pending: dict[int, Mark] = field(default_factory=dict)

    def begin(self, at: datetime, ends: Mapping[int, int]) -> None:
        """Takes a cut of partitions that have none."""
        for partition, end in ends.items():
            self.pending.setdefault(partition, Mark(at, end))

    def lacking(self, partitions: Collection[int]) -> list[int]:
        """Those without a cut."""
        return [partition for partition in partitions if partition not in self.pending]

    def reached(self, positions: Mapping[int, int]) -> dict[int, Mark]:
        """Removes and returns the cuts that the next offsets to be read have reached."""
        done = {p: mark for p, mark in self.pending.items() if p in positions and positions[p] >= mark.end}
        for partition in done:
            del self.pending[partition]
        return done
