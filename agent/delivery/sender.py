"""Puts deployments, finished windows and comparisons into the outbox, as messages that Kafka takes.

The one door out of the pod, and its lock: nothing of fewer requests than the minimum group gets past it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import structlog

from agent import wire
from agent.delivery.outbox import Outbox
from agent.delivery.small_comparisons import SmallComparisons
from agent.delivery.small_groups import DEFAULT_GROUP, MinGroup, SmallWindows, Version, Withheld, WithheldReason
from agent.delivery.windowing import ClosedWindow
from agent.instrument import Instrumented
from agent.metrics import AgentMetrics

log = structlog.get_logger()


class Sender:
    """Names every message by (agent_id, boot_epoch, seq) and keeps it below ``max_message_bytes``.

    Windows are for the thread that replays, comparisons other than holdouts for the one that compares.
    """

    def __init__(
        self,
        outbox: Outbox,
        agent_id: str,
        max_message_bytes: int,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        *,
        group: MinGroup = DEFAULT_GROUP,
        metrics: AgentMetrics | None = None,
    ) -> None:
        """``group`` is the least that is told of; ``metrics`` count what waits for more or is withheld."""
        self._outbox = outbox
        self._agent_id = agent_id
        self._max_message_bytes = max_message_bytes
        self._clock_ms = clock_ms
        self._metrics = metrics or AgentMetrics()
        self._small_windows = SmallWindows(group)
        self._small_comparisons = SmallComparisons(group)

    def deployment(self, model: str, version: str, digest: str, instrumented: Instrumented, provider: str) -> None:
        """Announces that a model version starts to serve."""
        body = wire.Deployment(self._clock_ms(), instrumented.probes, instrumented.not_probed, provider)
        self._post(wire.Envelope(self._agent_id, self._outbox.boot_epoch, 0, model, version, digest, body))

    def windows(self, windows: Iterable[ClosedWindow]) -> None:
        """Sends finished windows; a window too large for one message is split by its probes.

        Probes of too few requests wait for their next window.
        """
        for closed in windows:
            slot = closed.slot
            passed = self._small_windows.pass_on(closed)
            self._note_carried("window", (slot.model, slot.version, slot.digest), passed.carried)
            self._note_withheld("window", passed.withheld)
            for window in passed.windows:
                self._window(window)

    def withhold_windows(self, reason: WithheldReason, which: Callable[[Version], bool]) -> None:
        """Gives up, and counts, what is still too small to be told of, of the versions that ``which`` says."""
        self._note_withheld("window", self._small_windows.withhold(reason, which))

    def withhold_comparisons(self, reason: WithheldReason, which: Callable[[Version], bool]) -> None:
        """The same of comparisons."""
        self._note_withheld("comparison", self._small_comparisons.withhold(reason, which))

    def _window(self, closed: ClosedWindow) -> None:
        slot, summaries = closed.slot, closed.summaries
        items = tuple(
            wire.ProbeWindow(probe, summaries[probe.name]) for probe in closed.probes if probe.name in summaries
        )
        for part in self._parts(items):
            window = wire.Window(slot.start_ms, slot.end_ms, part)
            self._post(
                wire.Envelope(self._agent_id, self._outbox.boot_epoch, 0, slot.model, slot.version, slot.digest, window)
            )
        requests = max((item.summary.n for item in items), default=0)
        log.info("window.closed", model=slot.model, version=slot.version, requests=requests)

    def comparison(self, model: str, version: str, digest: str, body: wire.Comparison) -> None:
        """Sends a comparison, in parts where it is too large for one message: its own counts are in the first.

        What rests on too few requests waits for the next window; a holdout is no traffic, and never waits.
        """
        if body.kind != "holdout":
            passed = self._small_comparisons.pass_on((model, version, digest), body)
            self._note_carried("comparison", (model, version, digest), passed.carried)
            self._note_withheld("comparison", passed.withheld)
            if passed.comparison is None:
                return
            body = passed.comparison
        parts = list(self._comparison_parts(body.probes)) or [()]
        for number, part in enumerate(parts):
            item = replace(body if number == 0 else wire.probes_only(body), probes=part)
            self._post(wire.Envelope(self._agent_id, self._outbox.boot_epoch, 0, model, version, digest, item))
        log.info("comparison.closed", model=model, version=version, kind=body.kind, requests=body.n)

    def _comparison_parts(self, items: Iterable[wire.ProbeComparison]) -> Iterator[tuple[wire.ProbeComparison, ...]]:
        """As `_parts`."""
        part: list[wire.ProbeComparison] = []
        room = self._max_message_bytes
        for item in items:
            size = wire.estimated_comparison_size(item)
            if part and size > room:
                yield tuple(part)
                part, room = [], self._max_message_bytes
            part.append(item)
            room -= size
        if part:
            yield tuple(part)

    def _parts(self, items: Iterable[wire.ProbeWindow]) -> Iterator[tuple[wire.ProbeWindow, ...]]:
        """Runs of probes that fit a message together; a probe too large by itself goes alone."""
        part: list[wire.ProbeWindow] = []
        room = self._max_message_bytes
        for item in items:
            size = wire.estimated_size(item.summary)
            if part and size > room:
                yield tuple(part)
                part, room = [], self._max_message_bytes
            part.append(item)
            room -= size
        if part:
            yield tuple(part)

    def _note_carried(self, what: str, version: Version, carried: Mapping[str, int]) -> None:
        if carried:
            self._metrics.carried_requests_total.labels(version[0]).inc(sum(carried.values()))
            most = max(carried.values())
            log.info(f"{what}.carried_over", model=version[0], version=version[1], probes=len(carried), requests=most)

    def _note_withheld(self, what: str, withheld: Iterable[Withheld]) -> None:
        for one in withheld:
            model, version, _ = one.version
            self._metrics.withheld_requests_total.labels(model, one.reason).inc(sum(one.requests.values()))
            most = max(one.requests.values())
            probes = len(one.requests)
            log.info(f"{what}.withheld", model=model, version=version, reason=one.reason, probes=probes, requests=most)

    def _post(self, envelope: wire.Envelope) -> None:
        if not self._outbox.append(envelope.key, lambda seq: wire.encode(replace(envelope, seq=seq))):
            log.error("outbox.full", model=envelope.model, version=envelope.version)
