"""Puts deployments, finished windows and comparisons into the outbox, as messages that Kafka takes.

The one door out of the pod, and its lock: nothing of fewer requests than the minimum group gets past it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import structlog

from agent import wire
from agent.clock import unix_ms
from agent.delivery.drops import ProbeDrop
from agent.delivery.outbox import Outbox
from agent.delivery.small_comparisons import SmallComparisons
from agent.delivery.small_groups import DEFAULT_GROUP, MinGroup, SmallWindows, Withheld, WithheldReason
from agent.delivery.versions import Version
from agent.delivery.windowing import ClosedWindow, Slot
from agent.instrument import Instrumented
from agent.metrics import AgentMetrics

log = structlog.get_logger()
T = TypeVar("T")


class Sender:
    """Names every message by (agent_id, boot_epoch, seq) and keeps it below ``max_message_bytes``.

    Windows are for the thread that replays, comparisons other than holdouts for the one that compares.
    """

    def __init__(
        self,
        outbox: Outbox,
        agent_id: str,
        max_message_bytes: int,
        clock_ms: Callable[[], int] = unix_ms,
        on_drop: Callable[[ProbeDrop], None] = lambda drop: None,
        *,
        group: MinGroup = DEFAULT_GROUP,
        metrics: AgentMetrics | None = None,
    ) -> None:
        """``on_drop`` is told of probes whose summary no message takes; it may not raise.

        ``group`` is the least that is told of; ``metrics`` count what waits for more or is withheld.
        """
        self._outbox = outbox
        self._agent_id = agent_id
        self._max_message_bytes = max_message_bytes
        self._clock_ms = clock_ms
        self._on_drop = on_drop
        self._metrics = metrics or AgentMetrics()
        self.least = group.requests
        """Fewest requests that anything is told of."""
        self._small_windows = SmallWindows(group)
        self._small_comparisons = SmallComparisons(group)

    def deployment(self, model: str, version: str, digest: str, instrumented: Instrumented, provider: str) -> None:
        """Announces that a model version starts to serve."""
        body = wire.Deployment(self._clock_ms(), instrumented.probes, instrumented.not_probed, provider)
        self._post(wire.Envelope(self._agent_id, self._outbox.boot_epoch, 0, model, version, digest, body))

    def windows(self, windows: Iterable[ClosedWindow]) -> None:
        """Sends finished windows; a window too large for one message is split by its probes.

        Probes of too few requests wait for their next window. A window is in the outbox, or counted as lost by it, when
        the next is asked for.
        """
        for closed in windows:
            passed = self._small_windows.weigh(closed)
            for window in passed.windows:
                self._window(window)
            self._small_windows.settle(passed)
            model, version, _ = passed.version
            for name, (requests, error) in passed.failed.items():
                self._on_drop(ProbeDrop(model, version, name, "summary", requests, f"{error} in putting it together"))
            self._note_carried("window", passed.version, passed.carried)
            self._metrics.tally(model, version).count("held", max(passed.carried.values(), default=0))
            self._note_withheld("window", passed.withheld)

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
            self._post_part(slot, part)
        requests = max((item.summary.n for item in items), default=0)
        log.info("window.closed", model=slot.model, version=slot.version, requests=requests)

    def _post_part(self, slot: Slot, part: tuple[wire.ProbeWindow, ...]) -> None:
        window = wire.Window(slot.start_ms, slot.end_ms, part)
        names = (slot.model, slot.version, slot.digest)
        try:
            self._post(wire.Envelope(self._agent_id, self._outbox.boot_epoch, 0, *names, window))
        except Exception as error:  # nothing is in the outbox: one by one, the probe at fault is found
            for item in part if len(part) > 1 else ():
                self._post_part(slot, (item,))
            if len(part) == 1:
                message = f"{type(error).__name__} in making its message"
                self._on_drop(
                    ProbeDrop(slot.model, slot.version, part[0].probe.name, "encode", part[0].summary.n, message)
                )

    def comparison(self, model: str, version: str, digest: str, body: wire.Comparison) -> None:
        """Sends a comparison, in parts where it is too large for one message: its own counts are in the first.

        What rests on too few requests waits for the next window; a holdout is no traffic, and never waits.
        """
        if body.kind == "holdout":
            self._comparison(model, version, digest, body)
            return
        passed = self._small_comparisons.weigh((model, version, digest), body)
        if passed.comparison is not None:
            self._comparison(model, version, digest, passed.comparison)
        self._small_comparisons.settle(passed)
        self._note_carried("comparison", (model, version, digest), passed.carried)
        self._note_withheld("comparison", passed.withheld)

    def _comparison(self, model: str, version: str, digest: str, body: wire.Comparison) -> None:
        parts = list(self._comparison_parts(body.probes)) or [()]
        for number, part in enumerate(parts):
            item = replace(body if number == 0 else wire.probes_only(body), probes=part)
            self._post_comparison((model, version, digest), item)
        log.info("comparison.closed", model=model, version=version, kind=body.kind, requests=body.n)

    def kinship(self, model: str, version: str, digest: str, body: wire.Kinship) -> None:
        """Sends a kinship, in parts by layer where it is too large for one message."""
        for part in self._fitting(body.layers, wire.estimated_layer_size):
            item = replace(body, layers=part)
            self._post(wire.Envelope(self._agent_id, self._outbox.boot_epoch, 0, model, version, digest, item))

    def _post_comparison(self, names: tuple[str, str, str], item: wire.Comparison) -> None:
        try:
            self._post(wire.Envelope(self._agent_id, self._outbox.boot_epoch, 0, *names, item))
        except Exception as error:  # as in `_post_part`; the comparison's own counts go in any case
            if not item.probes:
                raise
            if len(item.probes) == 1:
                message = f"{type(error).__name__} in making its message"
                probe = item.probes[0]
                self._on_drop(ProbeDrop(names[0], names[1], probe.probe.name, "encode", probe.n, message))
                self._post_comparison(names, replace(item, probes=()))
                return
            for number, probe in enumerate(item.probes):
                self._post_comparison(names, replace(item if number == 0 else wire.probes_only(item), probes=(probe,)))

    def _comparison_parts(self, items: Iterable[wire.ProbeComparison]) -> Iterator[tuple[wire.ProbeComparison, ...]]:
        return self._fitting(items, wire.estimated_comparison_size)

    def _parts(self, items: Iterable[wire.ProbeWindow]) -> Iterator[tuple[wire.ProbeWindow, ...]]:
        return self._fitting(items, lambda item: wire.estimated_size(item.summary))

    def _fitting(self, items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[tuple[T, ...]]:
        """Runs of probes that fit a message together; a probe too large by itself goes alone."""
        part: list[T] = []
        room = self._max_message_bytes
        for item in items:
            size = size_of(item)
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
        # The epoch is asked for inside: it is the outbox's own until the message is on the disk.
        def make(seq: int) -> bytes:
            return wire.encode(replace(envelope, boot_epoch=self._outbox.boot_epoch, seq=seq))

        if not self._outbox.append(envelope.key, make):
            log.error("outbox.full", model=envelope.model, version=envelope.version)
