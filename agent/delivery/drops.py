"""What windows lack at single probes: counted, and said once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import structlog

from agent.metrics import AgentMetrics

log = structlog.get_logger()

ProbeDropReason = Literal["width", "shape", "summary", "encode"]
"""A metric label: bounded."""
_MOST_SAID = 4096


@dataclass(frozen=True, slots=True)
class ProbeDrop:
    """Requests that a window lacks at one probe, and why."""

    model: str
    version: str
    probe: str
    reason: ProbeDropReason
    """width: its number of channels is not what it was; shape: its pooled values do not fit the batch; summary: they
    cannot be summarised; encode: the summary does not go into a message."""
    requests: int
    message: str


class ProbeDrops:
    """Belongs to the thread that replays."""

    def __init__(self, metrics: AgentMetrics) -> None:
        self._metrics = metrics
        self._said: OrderedDict[tuple[str, str, str, str], None] = OrderedDict()

    def __call__(self, drop: ProbeDrop) -> None:
        """Counts a drop, and logs the first of its version, probe and reason."""
        self._metrics.probe_dropped_total.labels(drop.model, drop.reason).inc(drop.requests)
        kind = (drop.model, drop.version, drop.probe, drop.reason)
        if kind in self._said:
            return
        self._said[kind] = None
        if len(self._said) > _MOST_SAID:
            self._said.popitem(last=False)
        log.warning(
            "probe.dropped",
            model=drop.model,
            version=drop.version,
            probe=drop.probe,
            reason=drop.reason,
            message=drop.message,
        )
