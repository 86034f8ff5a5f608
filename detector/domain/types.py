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

Origin = Literal["windows", "first_requests", "previous_version", "offline", "accepted", "pinned"]
Policy = Literal["auto", "inherit", "own", "pinned"]


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
    late: int = 0
    """Requests that came after checks had passed their windows."""


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
        """Whether others have taken its place; ``current`` is `Store.current_versions`."""
        return self.deployed_at is not None and all(other.id != self.id for other in current)


@dataclass(frozen=True, slots=True)
class Progress:
    """What became of a model version's requests, as the view `ingest_progress` counts them."""

    model: str
    version: str
    complete_to: datetime | None
    """All that its partition held by then is ingested; None where nobody has told."""
    checked: int
    passed_over: int
    late: int


@dataclass(frozen=True, slots=True)
class AlarmState:
    """How far the sequential tests of a model version have come."""

    reference_id: int
    last: Batch
    """The newest batch that was taken in; windows that begin before its end are never used again."""
    families: Mapping[str, AlarmEvidence]


@dataclass(frozen=True, slots=True)
class Taken:
    """Requests of the windows that begin in [start, end), as a check read them."""

    start: datetime
    end: datetime
    checked: int
    """In batches."""
    passed_over: int
    """Between batches, and older than any window that is still looked at."""
    left_behind: int = 0
    """Of those passed over, requests of windows that begin before ``start``."""

    @property
    def inside(self) -> int:
        """Requests of all windows that begin from ``start`` on, before ``end``."""
        return self.checked + self.passed_over - self.left_behind


@dataclass(frozen=True, slots=True)
class Advance:
    """A step of the sequential tests, valid only from where it began."""

    before: datetime | None
    """End of the last batch that was stored before; None where nothing was."""
    state: AlarmState
    taken: Taken | None = None
    """What the step took in, for the count of requests; None where nobody counts."""


@dataclass(frozen=True, slots=True)
class Decision:
    """That a person made a reference, and why."""

    by: str
    why: str
    """Empty where nothing was said."""
    accepts: tuple[str, ...] = ()
    """Alerts of the newest check's findings, which are normal from now on."""


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """Where a model's next versions get their references from."""

    policy: Policy = "auto"
    reference_id: int | None = None
    """The one that is pinned; None for all other policies."""
    by: str = ""
    """Empty where nobody has chosen a policy."""
    why: str = ""
    at: datetime | None = None


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
    decision: Decision | None = None
    """None where the detector made it by itself."""

    def made_of(self, version_id: int) -> bool:
        """Whether it was made of this version's windows in production, which are never compared with it."""
        return self.source_version_id == version_id and self.origin != "offline"


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
