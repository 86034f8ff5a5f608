"""Everything the detector keeps, in Postgres. `Store` is the one door; the modules beside it each hold one area."""

from detector.domain.batches import Span
from detector.domain.runbook import Runbook
from detector.domain.types import (
    AgentComparison,
    AlertRow,
    HistoryPoint,
    IngestResult,
    ModelVersion,
    Origin,
    Reference,
    StoredCheck,
)
from detector.store.errors import LostOwnership, StoreError, StoreRefused, StoreUnavailable
from detector.store.facade import Store

__all__ = [
    "AgentComparison",
    "AlertRow",
    "HistoryPoint",
    "IngestResult",
    "LostOwnership",
    "ModelVersion",
    "Origin",
    "Reference",
    "Runbook",
    "Span",
    "Store",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "StoredCheck",
]
