"""An in-memory store with the methods that references and checks use, and helpers that fill it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from agent.summary import Summary, from_pooled, merge
from agent.wire import LayerKinship, Probe, ProbeKind
from detector.domain.batches import Span
from detector.domain.finding import Check
from detector.domain.layered import Layered
from detector.domain.slots import Slot
from detector.domain.turns import Turn, turn_at
from detector.domain.types import (
    Advance,
    AgentComparison,
    AlarmState,
    Decision,
    ModelVersion,
    Origin,
    Reference,
    ReferencePolicy,
)
from detector.domain.watermark import Ingested
from detector.statistics.design_effect import DesignEffect
from detector.statistics.fleet import Agents, of_summary

START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
WINDOW = timedelta(minutes=1)


@dataclass
class FakeStore:
    """Holds what it is given; `windows` maps a version's id to its windows, in order of time."""

    known: dict[int, ModelVersion] = field(default_factory=dict)
    layers: dict[int, list[Probe]] = field(default_factory=dict)
    windows: dict[int, list[tuple[Span, dict[str, Summary]]]] = field(default_factory=dict)
    fleets: dict[int, list[tuple[Span, str, dict[str, Summary]]]] = field(default_factory=dict)
    """The same by agent, of windows added by `add_fleet`."""
    saved_references: list[Reference] = field(default_factory=list)
    alarm_states: dict[int, AlarmState] = field(default_factory=dict)
    slots: dict[int, dict[Slot, Layered]] = field(default_factory=dict)
    """By reference."""
    saved_checks: list[tuple[Check, dict[str, int]]] = field(default_factory=list)
    policies: list[ReferencePolicy] = field(default_factory=list)
    """Of the one model, the last in force."""
    kinships: dict[tuple[int, str], dict[str, LayerKinship]] = field(default_factory=dict)
    """By version and the digest of the former one."""
    due: dict[int, datetime] = field(default_factory=dict)
    """By version: when its next check is due."""
    locked_elsewhere: set[int] = field(default_factory=set)
    superseded: set[int] = field(default_factory=set)
    compared: dict[int, list[AgentComparison]] = field(default_factory=dict)
    """By version; with counts by channel, unlike those of the real store."""

    def add_version(self, name: str, probes: list[Probe], at: datetime = START) -> ModelVersion:
        """Deploys a version of the model "digits" at a time."""
        version = ModelVersion(len(self.known) + 1, "digits", name, "0" * 64, at, None, at)
        self.known[version.id] = version
        self.layers[version.id] = probes
        self.windows[version.id] = []
        return version

    def add_window(self, version: ModelVersion, summaries: dict[str, Summary], start: datetime) -> Span:
        """Adds a window of a minute."""
        span = Span(start, start + WINDOW, max(summary.n for summary in summaries.values()))
        self.windows[version.id].append((span, summaries))
        return span

    def add_fleet(self, version: ModelVersion, agents: dict[str, dict[str, Summary]], start: datetime) -> Span:
        """Adds a window of a minute that several agents had a part in."""
        names = dict.fromkeys(name for layers in agents.values() for name in layers)
        parts = {name: [layers[name] for layers in agents.values() if name in layers] for name in names}
        span = self.add_window(version, {name: reduce(merge, of) for name, of in parts.items()}, start)
        self.fleets.setdefault(version.id, []).extend((span, agent, layers) for agent, layers in agents.items())
        return span

    def versions(self, since: datetime) -> list[ModelVersion]:
        return [v for v in self.known.values() if any(span.end > since for span, _ in self.windows[v.id])]

    def compared_versions(self, since: datetime) -> list[tuple[ModelVersion, datetime]]:
        ends = {
            id: datetime.fromtimestamp(max(one.comparison.end_ms for one in found) / 1000, UTC)
            for id, found in self.compared.items()
        }
        return [(self.known[id], end) for id, end in ends.items() if end > since]

    def ingested(self, version_id: int, now: datetime) -> Ingested:
        return Ingested(None, None, None, ())

    def current_versions(self, now: datetime) -> list[ModelVersion]:
        return [v for v in self.known.values() if v.id not in self.superseded]

    def previous_version(self, version_id: int) -> ModelVersion | None:
        return self.known.get(version_id - 1)

    def probes(self, version_id: int) -> list[Probe]:
        return self.layers[version_id]

    def spans(self, version_id: int, start: datetime, end: datetime) -> list[Span]:
        return [span for span, _ in self.windows[version_id] if start <= span.start and span.end <= end]

    def summaries(self, version_id: int, start: datetime, end: datetime) -> dict[str, Summary]:
        inside = [s for span, s in self.windows[version_id] if start <= span.start and span.end <= end]
        names = dict.fromkeys(name for window in inside for name in window)
        return {name: reduce(merge, [window[name] for window in inside if name in window]) for name in names}

    def agents(self, version_id: int, start: datetime, end: datetime) -> Agents:
        found: dict[str, dict[str, Summary]] = {}
        for span, agent, layers in self.fleets.get(version_id, []):
            if start <= span.start and span.end <= end:
                known = found.setdefault(agent, {})
                for name, summary in layers.items():
                    known[name] = merge(known[name], summary) if name in known else summary
        return {agent: {name: of_summary(s) for name, s in layers.items()} for agent, layers in found.items()}

    def live_agents(self, version_id: int, names: Collection[str], since: datetime) -> set[str]:
        return {agent for span, agent, _ in self.fleets.get(version_id, []) if agent in names and span.start >= since}

    def comparisons(
        self, version_id: int, since: datetime, until: datetime, holdouts_since: datetime
    ) -> list[AgentComparison]:
        return self.compared.get(version_id, [])

    def channel_activity(
        self, of: Sequence[AgentComparison], layer: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        items = [item for one in of for item in one.comparison.probes if item.probe.name == layer]
        if not items:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return sum(i.only_served_active for i in items), sum(i.only_baseline_active for i in items)  # type: ignore[return-value]

    def reference(self, version_id: int) -> Reference | None:
        return next((one for one in reversed(self.saved_references) if one.version_id == version_id), None)

    def save_reference(
        self,
        version_id: int,
        origin: Origin,
        source_version_id: int,
        start: datetime,
        end: datetime,
        n: int,
        summaries: Mapping[str, Summary],
        effects: Mapping[str, DesignEffect] | None = None,
        slots: Iterable[tuple[Slot, Layered]] = (),
        slots_of: int | None = None,
        decision: Decision | None = None,
        as_read: bool = False,
    ) -> int:
        number = len(self.saved_references) + 1
        self.slots[number] = dict(slots) if slots_of is None else self.slots[slots_of]
        self.saved_references.append(
            Reference(
                number, version_id, origin, source_version_id, start, end, n, end, dict(summaries), effects or {},
                tuple(self.slots[number]), decision,
            )
        )  # fmt: skip
        return number

    def reference_with_id(self, reference_id: int) -> Reference | None:
        return next((one for one in self.saved_references if one.id == reference_id), None)

    def reference_policy(self, model: str) -> ReferencePolicy:
        return self.policies[-1] if self.policies else ReferencePolicy()

    def set_reference_policy(self, model: str, chosen: ReferencePolicy) -> None:
        self.policies.append(chosen)

    def kinship(self, version_id: int, former_digest: str) -> dict[str, LayerKinship]:
        return self.kinships.get((version_id, former_digest), {})

    def reference_slot(self, reference_id: int, slot: Slot) -> Layered:
        return self.slots[reference_id].get(slot, Layered({}, {}))

    def alarm_state(self, version_id: int) -> AlarmState | None:
        return self.alarm_states.get(version_id)

    def save_check(
        self,
        check: Check,
        runbook_versions: Mapping[str, int],
        advance: Advance | None = None,
        turn: Turn | None = None,
    ) -> int:
        if turn is not None:
            assert turn.before == self.due.get(check.model_version_id)
            self.due[check.model_version_id] = turn.next_due
        self.saved_checks.append((check, dict(runbook_versions)))
        if advance is not None:
            known = self.alarm_states.get(check.model_version_id)
            assert advance.before == (known.last.end if known else None)
            self.alarm_states[check.model_version_id] = advance.state
        return len(self.saved_checks)

    @contextmanager
    def turn(self, version_id: int, now: datetime, interval: float) -> Iterator[Turn | None]:
        yield None if version_id in self.locked_elsewhere else turn_at(self.due.get(version_id), now, interval)


def probe(name: str, position: int, channels: int | None, kind: ProbeKind = "activation") -> Probe:
    """A rectifier, or an input or output."""
    op = {"input": "Input", "output": "Output"}.get(kind, "Relu")
    return Probe(name, op, name, channels, 1, kind, position, kind == "activation")


def summarise(values: NDArray[np.floating]) -> Summary:
    """Of values (requests, channels) that are mean, maximum and, by their sign, active fraction at once."""
    return from_pooled(values, values, (values > 0).astype(np.float64))


def rectified(
    rng: np.random.Generator, n: int, channels: int, zeros: float = 0.5, scale: float = 1.0
) -> NDArray[np.float64]:
    """Activations (n, channels): zero with a probability, else gamma distributed."""
    values = scale * rng.gamma(2.0, size=(n, channels))
    values[rng.random((n, channels)) < zeros] = 0.0
    return values


def kin(rng: np.random.Generator, *, near: bool = True, n: int = 100, layer: str = "relu") -> dict[str, LayerKinship]:
    """What agents would measure of a version that is near the former one, or that was trained anew."""
    former = rng.normal(size=(n, 8))
    served = former + 0.1 * rng.normal(size=(n, 8)) if near else rng.normal(size=(n, 8))
    neighbours = np.roll(former, -1, axis=1)
    sums = (served, former, served**2, former**2, served * former, served * neighbours)
    return {layer: LayerKinship(layer, n, *(one.sum(axis=0) for one in sums))}
