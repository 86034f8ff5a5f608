"""Small findings, checks and a store in memory, for the tests of metrics and pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from detector.domain.agents import AgentCondition, AgentState
from detector.domain.alerts import alert_for, severity_of
from detector.domain.finding import Cause, Check, Finding, Test
from detector.domain.runbook import Runbook
from detector.domain.types import Progress
from detector.store import AlertRow, ModelVersion, StoredCheck, StoreError

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def finding(
    layer: str = "relu2", test: Test = "dead", cause: Cause = "dead_neurons", channels: int = 3, origin: bool = True
) -> Finding:
    """A finding on the first ``channels`` of eight."""
    alert = alert_for(test, cause)
    return Finding(
        layer=layer,
        kind="activation",
        position=3,
        test=test,
        cause=cause,
        severity=severity_of(alert),
        origin=origin,
        channels=tuple(range(channels)),
        channels_total=8,
        statistic=1.0,
        p_value=1e-9,
        effect=float("inf"),
        n=500,
        n_reference=1000,
        summary=f"{channels} of 8 channels",
        alert=alert,
    )


def check(version_id: int, *findings: Finding, at: datetime = NOW) -> Check:
    """A check that ended at ``at``."""
    counts = {"dead_at_reference": 1, "newly_dead": 3, "dormant": 1, "alive": 3, "drifted": 2, "channels": 8}
    zeros = {"sparsity": 0.71, "sparsity_low": 0.52, "sparsity_high": 0.58}
    return Check(
        model_version_id=version_id,
        reference_id=None,
        started_at=at,
        finished_at=at,
        window_start=at - timedelta(minutes=2),
        window_end=at - timedelta(minutes=1),
        n=500,
        status="findings" if findings else "ok",
        note="",
        layers={"relu2": counts | zeros, "empty": {"channels": 0}},
        findings=findings,
        alarms={"drift": {"evidence": 0.25, "alarm": 0.0}, "dead": {"evidence": 10.0, "alarm": 1.0}},
    )


def version(
    id: int, name: str = "2", model: str = "digits", seen: datetime | None = NOW, at: datetime | None = NOW
) -> ModelVersion:
    """A model version whose newest window ended at ``seen``, deployed at ``at``."""
    return ModelVersion(id, model, name, f"sha{id}", NOW - timedelta(days=1), seen, at)


def agent(
    name: str = "pod-1",
    state: AgentCondition = "observing",
    version: str = "2",
    *,
    model: str = "digits",
    id: int | None = 1,
    since: datetime = NOW,
    heard: datetime = NOW,
    interval: float | None = 30.0,
    **fields: Any,
) -> AgentState:
    """An agent of a version, heard now unless told otherwise; without an id, it refused the version."""
    values: dict[str, Any] = {
        "first_seen": NOW - timedelta(days=id) if id else None, "known_to": NOW, "last_window_at": None,
        "clock_error_seconds": None, "requests": 0, "sampled": 0, "replayed": 0, "rejected": 0, "dropped": 0,
        "missed": 0.0, "silent_seconds": 105.0, "waiting_since": None, "waiting_moved_at": None,
    }  # fmt: skip
    return AgentState(
        model_version_id=id, model=model, version=version, digest=f"sha{id}" if id else "", agent_id=name, state=state,
        since=since, heard_at=heard, interval_seconds=interval, **values | fields,
    )  # fmt: skip


@dataclass
class MemoryStore:
    """Answers from lists; with ``down``, as if Postgres were out of reach."""

    known: list[ModelVersion] = field(default_factory=list)
    stored: list[StoredCheck] = field(default_factory=list)
    books: dict[tuple[str, int], Runbook] = field(default_factory=dict)
    saved: list[AlertRow] = field(default_factory=list)
    down: StoreError | None = None
    compared: dict[int, datetime] = field(default_factory=dict)
    """By version: the end of its newest comparison."""
    agents: list[AgentState] = field(default_factory=list)
    seen: list[Progress] = field(default_factory=list)

    def _ask(self) -> None:
        if self.down is not None:
            raise self.down

    def versions(self, since: datetime) -> list[ModelVersion]:
        self._ask()
        return [v for v in self.known if v.last_window_end is not None and v.last_window_end > since]

    def compared_versions(self, since: datetime) -> list[tuple[ModelVersion, datetime]]:
        self._ask()
        return [(v, self.compared[v.id]) for v in self.known if v.id in self.compared and self.compared[v.id] > since]

    def current_versions(self, now: datetime) -> list[ModelVersion]:
        self._ask()
        return [v for v in self.known if v.deployed_at is not None]

    def agent_states(self, now: datetime) -> list[AgentState]:
        self._ask()
        return self.agents

    def progress(self) -> list[Progress]:
        self._ask()
        return self.seen

    def latest_checks(self, since: datetime) -> list[StoredCheck]:
        self._ask()
        return [s for s in self.stored if s.check.finished_at >= since]

    def runbook(self, name: str, version: int) -> Runbook | None:
        self._ask()
        return self.books.get((name, version))

    def runbooks(self) -> list[Runbook]:
        self._ask()
        return list(self.books.values())

    def register_runbook(self, runbook: Runbook) -> None:
        self._ask()
        self.books.setdefault((runbook.name, runbook.version), runbook)

    def save_alert(self, alert: AlertRow) -> None:
        self._ask()
        self.saved.append(alert)
