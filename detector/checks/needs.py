"""What checks ask of the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

from detector.domain.finding import Check
from detector.domain.layered import Layered
from detector.domain.slots import Slot
from detector.domain.turns import Turn
from detector.domain.types import Advance, AlarmState, ModelVersion
from detector.domain.watermark import Ingested
from detector.paired import ComparisonStore
from detector.references.making import ReferenceStore
from detector.statistics.fleet import Agents


class CheckStore(ReferenceStore, ComparisonStore, Protocol):
    """The part of the store that checks need."""

    def versions(self, since: datetime) -> list[ModelVersion]: ...
    def compared_versions(self, since: datetime) -> list[tuple[ModelVersion, datetime]]: ...
    def current_versions(self, now: datetime) -> list[ModelVersion]: ...
    def ingested(self, version_id: int, now: datetime) -> Ingested: ...
    def reference_slot(self, reference_id: int, slot: Slot) -> Layered: ...
    def agents(self, version_id: int, start: datetime, end: datetime) -> Agents: ...
    def live_agents(self, version_id: int, names: Collection[str], since: datetime) -> set[str]: ...
    def alarm_state(self, version_id: int) -> AlarmState | None: ...
    def save_check(
        self,
        check: Check,
        runbook_versions: Mapping[str, int],
        advance: Advance | None = None,
        turn: Turn | None = None,
    ) -> int: ...
    def turn(self, version_id: int, now: datetime, interval: float) -> AbstractContextManager[Turn | None]: ...
