"""What the store takes and gives. All times carry a time zone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from agent.summary import Summary
from agent.wire import Comparison
from detector.domain.batches import Batch
from detector.domain.finding import Check
from detector.domain.slots import Slot
from detector.statistics.design_effect import DesignEffect
from detector.statistics.sequential import AlarmEvidence

Origin = Literal["windows", "first_requests", "previous_version", "offline"]


@dataclass(frozen=True, slots=True)
class RefusedProbe:
    """A layer that was left out of a message, for its width is not that of its model version."""

    model: str
    version: str
    layer: str
    channels: int
    """In the message."""
    known: int
    """In the model version."""


@dataclass(frozen=True, slots=True)
class IngestResult:
    """How many messages of a batch were new, how many had been applied before, and which layers were left out."""

    applied: int
    duplicates: int
    refused: tuple[RefusedProbe, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model file that agents have reported."""

    id: int
    model: str
    version: str
    digest: str
    """sha256 of the model file: a version name that is used again for another file is another model version."""
    first_seen: datetime
    """The earliest deployment or window start reported."""
    last_window_end: datetime | None
    """None before the first window."""
    deployed_at: datetime | None
    """The latest deployment by any agent."""

    def superseded(self, current: Iterable[ModelVersion]) -> bool:
        """Whether every agent that deployed it has deployed another since; ``current`` is `Store.current_versions`."""
        return self.deployed_at is not None and all(other.id != self.id for other in current)


@dataclass(frozen=True, slots=True)
class AlarmState:
    """How far the sequential tests of a model version have come."""

    reference_id: int
    last: Batch
    """The newest batch that was taken in; windows that begin before its end are never used again."""
    families: Mapping[str, AlarmEvidence]


@dataclass(frozen=True, slots=True)
class Advance:
    """A step of the sequential tests, valid only from where it began."""

    before: datetime | None
    """End of the last batch that was stored before; None where nothing was."""
    state: AlarmState


@dataclass(frozen=True, slots=True)
class Reference:
    """What current windows of a model version are compared with."""

    id: int
    version_id: int
    origin: Origin
    source_version_id: int
    """The version whose windows it was made from."""
    start: datetime
    end: datetime
    n: int
    created_at: datetime
    summaries: Mapping[str, Summary]
    """By layer; empty in listings."""
    effects: Mapping[str, DesignEffect] = field(default_factory=dict)
    """Design effects by layer; layers of references made before there were any are absent."""
    slots: tuple[Slot, ...] = ()
    """What it has references of its own for, hours of any day first; `Store.reference_slot` reads them."""


@dataclass(frozen=True, slots=True)
class AgentComparison:
    """What one agent compared with one baseline, summed over time; a holdout as it was told last."""

    source_id: int
    agent_id: str
    comparison: Comparison
    """Its probes without counts by channel: `Store.channel_activity` has those."""


@dataclass(frozen=True, slots=True)
class StoredCheck:
    """A check and whom it was about."""

    id: int
    model: str
    version: str
    check: Check


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One layer in one window, for plots."""

    window_start: datetime
    layer: str
    kind: str
    position: int
    n: int
    active_share: float
    """Share of (request, channel) pairs with any positive activation, 0 to 1."""
    mean: float
    """Of the pooled means, over channels and requests; 0 where no request was finite."""
    max: float
    """Largest activation; 0 where no request was finite."""
    nonfinite: int
    """(request, channel) pairs with a NaN or an infinity."""


@dataclass(frozen=True, slots=True)
class AlertRow:
    """An alert as Alertmanager told it, pinned to a runbook version."""

    fingerprint: str
    alertname: str
    status: str
    """firing or resolved."""
    severity: str | None
    model: str | None
    version: str | None
    layer: str | None
    cause: str | None
    starts_at: datetime
    ends_at: datetime | None
    """None while it fires."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    runbook_name: str | None
    runbook_version: int | None
    received_at: datetime
