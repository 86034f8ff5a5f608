"""Everything the detector keeps, in Postgres. `Store` is the one door; the modules beside it each hold one area."""

from detector.batches import Span
from detector.runbooks import Runbook
from detector.store.errors import LostOwnership, StoreError, StoreRefused, StoreUnavailable
from detector.store.facade import Store
from detector.store.types import (
    AgentComparison,
    AlertRow,
    HistoryPoint,
    IngestResult,
    ModelVersion,
    Origin,
    Reference,
    StoredCheck,
)

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
