"""`Store`: the detector's whole use of Postgres, one method per question."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from agent.summary import Summary
from agent.wire import Envelope, LayerKinship, Probe
from detector.domain.agents import AgentState, Heard
from detector.domain.batches import Span
from detector.domain.finding import Check
from detector.domain.holds import OpenAlert, Settled
from detector.domain.layered import Layered
from detector.domain.runbook import Runbook
from detector.domain.settings import AgentLimits
from detector.domain.slots import Slot
from detector.domain.turns import Turn
from detector.domain.types import (
    Advance,
    AgentComparison,
    AlarmState,
    AlertRow,
    Decision,
    HistoryPoint,
    IngestResult,
    ModelVersion,
    Origin,
    Progress,
    Reference,
    ReferencePolicy,
    StoredCheck,
)
from detector.domain.watermark import Ingested
from detector.statistics.design_effect import DesignEffect
from detector.statistics.fleet import Agents
from detector.store import (
    agents,
    alarms,
    alerts,
    checks,
    comparison_reading,
    heartbeats,
    ingest,
    kinships,
    lateness,
    partitions,
    reading,
    references,
    turns,
    versions,
)  # fmt: skip
from detector.store.database import Database

DEFAULT_LIMITS = AgentLimits()


class Store:
    """Thread-safe; connects when first used. Every method is one transaction and may raise `StoreError`."""

    def __init__(self, url: str) -> None:
        """``url`` is ``postgresql+psycopg://user:password@host:port/database``; raises StoreError where it is not."""
        self._database = Database(url)

    def close(self) -> None:
        """Returns all connections."""
        self._database.close()

    def ping(self) -> None:
        """Raises StoreUnavailable where Postgres does not answer, StoreError where it is not migrated."""
        with self._database.begin() as connection:
            versions.probe_schema(connection)

    # Ingest

    def next_offsets(self, topic: str) -> dict[int, int]:
        """Per partition, the first offset that is not applied yet; partitions never ingested are absent."""
        with self._database.begin() as connection:
            return ingest.next_offsets(connection, topic)

    def ingest(
        self,
        topic: str,
        partition: int,
        expected_offset: int | None,
        next_offset: int,
        envelopes: Sequence[Envelope],
        heard: Sequence[Heard] | None = None,
        limits: AgentLimits = DEFAULT_LIMITS,
    ) -> IngestResult:
        """Applies a micro-batch and moves the offset from ``expected_offset`` (None: not there yet), all or nothing.

        ``heard`` says when each message was heard of; without it, their agents' clocks are believed, and the clock says
        what is complete. A layer whose width is not that of its model version is left out, and named in the result.

        Raises LostOwnership where the offset is another, StoreRefused where Postgres does not take a message.
        """
        with self._database.begin() as connection:
            return ingest.apply(connection, topic, partition, expected_offset, next_offset, envelopes, heard, limits)

    def recognise(self, topic: str, topic_id: str) -> list[int]:
        """Says which topic of that name the offsets belong to; partitions of one that is gone begin anew, and are
        returned. ``topic_id`` is what the broker made it with."""
        with self._database.begin() as connection:
            return ingest.recognise(connection, topic, topic_id)

    def complete_to(self, topic: str) -> dict[int, datetime]:
        """Per partition, the moment up to which all that it held is ingested; absent where it is not known."""
        with self._database.begin() as connection:
            return ingest.complete_to(connection, topic)

    def reach(self, topic: str, offsets: Mapping[int, int], at: datetime) -> None:
        """Says that all that partitions held at ``at`` is ingested, of those whose next offset is still as given."""
        with self._database.begin() as connection:
            ingest.reach(connection, topic, offsets, at)

    def ingested(self, version_id: int, now: datetime) -> Ingested:
        """How far a version is ingested, and what its agents say: what `closed_until` asks for."""
        with self._database.begin() as connection:
            return ingest.ingested(connection, version_id, now)

    # Agents

    def agent_states(self, now: datetime) -> list[AgentState]:
        """All agents heard in the last seven days, one entry for each model version they served, as of ``now``."""
        with self._database.begin() as connection:
            return heartbeats.states(connection, now)

    def clock_errors(self) -> dict[str, float]:
        """Seconds that agents' clocks are ahead, by agent, as measured last."""
        with self._database.begin() as connection:
            return heartbeats.clock_errors(connection)

    def progress(self) -> list[Progress]:
        """What checks have seen and not seen of each model version that any window came late for or was checked."""
        with self._database.begin() as connection:
            return versions.progress(connection)

    # Model versions and their windows

    def versions(self, since: datetime) -> list[ModelVersion]:
        """Versions with a window that ends after ``since``, by model, then age."""
        with self._database.begin() as connection:
            return versions.with_windows(connection, since)

    def compared_versions(self, since: datetime) -> list[tuple[ModelVersion, datetime]]:
        """Versions with a comparison that ends after ``since``, each with the end of its newest one."""
        with self._database.begin() as connection:
            return versions.with_comparisons(connection, since)

    def model_version(self, model: str, version: str | None) -> ModelVersion | None:
        """The newest of that name; ``version`` None: the newest of the model."""
        with self._database.begin() as connection:
            return versions.newest(connection, model, version)

    def current_versions(self, now: datetime) -> list[ModelVersion]:
        """Versions that agents were heard to serve in the last seven days, and that no other has taken the place of."""
        with self._database.begin() as connection:
            return versions.current(connection, now)

    def previous_version(self, version_id: int) -> ModelVersion | None:
        """What was deployed last before this version's first deployment; None for a model's first version."""
        with self._database.begin() as connection:
            return versions.previous(connection, version_id)

    def probes(self, version_id: int) -> list[Probe]:
        """In graph order."""
        with self._database.begin() as connection:
            return versions.probes(connection, version_id)

    def spans(self, version_id: int, start: datetime, end: datetime) -> list[Span]:
        """Windows inside [start, end], ascending; n is the largest over probes."""
        with self._database.begin() as connection:
            return reading.spans(connection, version_id, start, end)

    def summaries(self, version_id: int, start: datetime, end: datetime) -> dict[str, Summary]:
        """By layer, in graph order, merged over the windows inside [start, end]."""
        with self._database.begin() as connection:
            return reading.summaries(connection, version_id, start, end)

    def history(self, version_id: int, start: datetime, end: datetime) -> list[HistoryPoint]:
        """One point per window inside [start, end] and layer, by window, then graph order."""
        with self._database.begin() as connection:
            return reading.history(connection, version_id, start, end)

    def agents(self, version_id: int, start: datetime, end: datetime) -> Agents:
        """Every agent's layers over its windows inside [start, end], averages weighted by their finite values."""
        with self._database.begin() as connection:
            return agents.inside(connection, version_id, start, end)

    def live_agents(self, version_id: int, names: Collection[str], since: datetime) -> set[str]:
        """Those of ``names`` that have a window of the version that begins at or after ``since``."""
        with self._database.begin() as connection:
            return agents.live(connection, version_id, names, since)

    # Comparisons with a baseline

    def comparisons(
        self, version_id: int, since: datetime, until: datetime, holdouts_since: datetime
    ) -> list[AgentComparison]:
        """Per agent and baseline, summed over the windows inside [since, until]; of a holdout what was told last
        between ``holdouts_since`` and ``until``. Without counts by channel."""
        with self._database.begin() as connection:
            return comparison_reading.read(connection, version_id, since, until, holdouts_since)

    def channel_activity(
        self, of: Sequence[AgentComparison], layer: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Requests that activate each channel on the served side only, and on the baseline only, over all of ``of``.

        Shape (channels,); empty where the layer has no counts by channel.
        """
        with self._database.begin() as connection:
            return comparison_reading.channel_activity(connection, of, layer)

    # References

    def reference(self, version_id: int) -> Reference | None:
        """The active one."""
        with self._database.begin() as connection:
            return references.active(connection, version_id)

    def reference_with_id(self, reference_id: int) -> Reference | None:
        """Any one, active or not."""
        with self._database.begin() as connection:
            return references.with_id(connection, reference_id)

    def references(self, version_id: int) -> list[Reference]:
        """All, newest first, without their summaries."""
        with self._database.begin() as connection:
            return references.listing(connection, version_id)

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
        """Makes a new active reference in place of the former one, which is kept; its id.

        ``slots`` are the references of its slots. Each is stored before the next is asked for, so that they may be
        made one by one, by reading from this store too. ``slots_of`` takes over those of another reference.
        ``decision`` says which person made it. ``as_read`` says that it was made of the version's windows in the span,
        whose requests are ``n``: raises LostOwnership where they have grown since, for no check would see the rest.
        """
        with self._database.begin() as connection:
            made = references.save(
                connection, version_id, origin, source_version_id, start, end, n,
                Layered(summaries, effects or {}), decision,
            )  # fmt: skip
            references.save_slots(connection, made, slots, slots_of)
            if as_read:  # last, as ingest of the version waits from here on
                lateness.as_read(connection, version_id, start, end, n)
            return made

    def reference_slot(self, reference_id: int, slot: Slot) -> Layered:
        """The part of a reference that lies in one of its slots; without layers where it does not have the slot."""
        with self._database.begin() as connection:
            return references.of_slot(connection, reference_id, slot)

    def reference_policy(self, model: str) -> ReferencePolicy:
        """The one in force; `auto` by nobody where none was ever chosen."""
        with self._database.begin() as connection:
            return references.policy(connection, model)

    def set_reference_policy(self, model: str, chosen: ReferencePolicy) -> None:
        """Puts a policy into force for the versions to come; the former ones are kept."""
        with self._database.begin() as connection:
            references.set_policy(connection, model, chosen)

    def kinship(self, version_id: int, former_digest: str) -> dict[str, LayerKinship]:
        """By layer, what all agents measured of a version beside the model file that it replaced."""
        with self._database.begin() as connection:
            return kinships.read(connection, version_id, former_digest)

    # Checks

    def alarm_state(self, version_id: int) -> AlarmState | None:
        """How far the version's sequential tests have come; None before their first batch."""
        with self._database.begin() as connection:
            return alarms.read(connection, version_id)

    def save_check(
        self,
        check: Check,
        runbook_versions: Mapping[str, int],
        advance: Advance | None = None,
        turn: Turn | None = None,
    ) -> int:
        """Stores a check with its findings, each pinned to its alert's runbook version where there is one; its id.

        The step of the evidence and the next due time are stored with it or none is; raises LostOwnership where another
        process has moved either on, so that no window and no due time ever counts twice.
        """
        with self._database.begin() as connection:
            if turn is not None:
                turns.move(connection, check.model_version_id, turn)
            if advance is not None:
                alarms.advance(connection, check.model_version_id, advance)
            return checks.save(connection, check, runbook_versions)

    def latest_checks(self, since: datetime) -> list[StoredCheck]:
        """The newest check of every model version, of those that finished at or after ``since``."""
        with self._database.begin() as connection:
            return checks.latest(connection, since)

    def checks(self, version_id: int, since: datetime, limit: int) -> list[StoredCheck]:
        """Checks of a version that finished at or after ``since``, newest first."""
        with self._database.begin() as connection:
            return checks.of_version(connection, version_id, since, limit)

    # Runbooks and alerts

    def register_runbook(self, runbook: Runbook) -> None:
        """Keeps a runbook version for ever; one that is registered already stays as it is."""
        with self._database.begin() as connection:
            alerts.register_runbook(connection, runbook)

    def runbook(self, name: str, version: int) -> Runbook | None:
        """One version of a runbook."""
        with self._database.begin() as connection:
            return alerts.runbook(connection, name, version)

    def runbooks(self) -> list[Runbook]:
        """All versions of all runbooks, by name, then version."""
        with self._database.begin() as connection:
            return alerts.runbooks(connection)

    def save_alert(self, alert: AlertRow) -> None:
        """Keeps an alert, or updates the one with the same fingerprint and start.

        The runbook version of the first notice stays, as does a resolution against a late notice that it fires.
        """
        with self._database.begin() as connection:
            alerts.save(connection, alert)

    def open_alerts(self, since: datetime) -> list[OpenAlert]:
        """Alerts that fire, as far as is known, and those that a reconciliation ended at or after ``since``."""
        with self._database.begin() as connection:
            return alerts.opened(connection, since)

    def settle_alerts(self, settled: Sequence[Settled]) -> None:
        """Keeps what Alertmanager's API says of open alerts."""
        with self._database.begin() as connection:
            alerts.settle(connection, settled)

    def alerts(self, since: datetime) -> list[AlertRow]:
        """Alerts that started at or after ``since`` or had not ended by then, oldest first."""
        with self._database.begin() as connection:
            return alerts.listing(connection, since)

    # Housekeeping

    def now(self) -> datetime:
        """Postgres' clock: the one that all detectors share."""
        with self._database.begin() as connection:
            return versions.now(connection)

    @contextmanager
    def turn(self, version_id: int, now: datetime, interval: float) -> Iterator[Turn | None]:
        """The right to check the version, for `save_check`; None where it is not due, or another process is at it.

        Holds until the block ends or the process does; never waits. ``interval`` is the seconds between checks.
        """
        with self._database.begin() as connection:
            yield turns.take(connection, version_id, now, interval)

    def maintain(self, now: datetime, retention_days: int, days_ahead: int) -> None:
        """Makes daily partitions up to ``days_ahead`` and drops what is older than ``retention_days``.

        Does nothing where another process is at it.
        """
        partitions.maintain(self._database, now, retention_days, days_ahead)
        with self._database.begin() as connection:
            heartbeats.forget(connection, now)
            versions.forget_deployments(connection, now - timedelta(days=retention_days))
