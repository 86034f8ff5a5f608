"""The plan of a model version that is served: what its budget costs at the rate at which its requests really come."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from agent.wire import Probe
from detector.domain.finding import Check
from detector.domain.settings import CheckSettings
from detector.domain.types import Reference
from detector.planning.plan import Question
from detector.statistics.design_effect import worst

SHIFT = 0.3
"""Cohen's omega that the outlook is given for; never below three times what is tolerated."""


class OutlookStore(Protocol):
    """The part of the store that an outlook needs."""

    def reference(self, version_id: int) -> Reference | None: ...
    def probes(self, version_id: int) -> list[Probe]: ...


def question_for(store: OutlookStore, check: Check, settings: CheckSettings) -> Question | None:
    """What to ask `plan` about the version that was checked; None before it has a reference and a batch."""
    if check.window_start is None or check.window_end is None or not check.n:
        return None
    base = store.reference(check.model_version_id)
    widths = _widths(store.probes(check.model_version_id))
    if base is None or not widths:
        return None
    return Question(
        requests_per_second=check.n / ((check.window_end - check.window_start) / timedelta(seconds=1)),
        effect=min(2.0, max(SHIFT, 3 * settings.min_effect)),
        false_page_days=settings.false_page_days,
        layers=len(widths),
        channels=max(widths),
        min_effect=settings.min_effect,
        reference_requests=base.n,
        design_effect=worst(base.effects),
    )


def _widths(probes: Sequence[Probe]) -> list[int]:
    return [probe.channels for probe in probes if probe.channels]
