"""What the exported gauges are made from: the store as it was a moment ago."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from detector.domain.agents import AgentState, VersionState, version_states
from detector.domain.finding import Check
from detector.domain.types import ModelVersion, Progress, StoredCheck

GAP_DAYS = 7
"""A deployed version that has been silent for longer is taken to be decommissioned."""


class SnapshotStore(Protocol):
    """The part of the store that a snapshot is read from."""

    def versions(self, since: datetime) -> list[ModelVersion]: ...
    def compared_versions(self, since: datetime) -> list[tuple[ModelVersion, datetime]]: ...
    def latest_checks(self, since: datetime) -> list[StoredCheck]: ...
    def current_versions(self, now: datetime) -> list[ModelVersion]: ...
    def agent_states(self, now: datetime) -> list[AgentState]: ...
    def progress(self) -> list[Progress]: ...


@dataclass(frozen=True, slots=True)
class Watched:
    """A model version with recent windows or comparisons, and its latest check if there is one."""

    model: str
    version: str
    until: datetime
    """When it is no longer watched, unless windows or comparisons arrive."""
    first_seen: datetime
    check: Check | None

    @property
    def last_check(self) -> datetime:
        """Before the first check: when the version was first seen, so that a check that never comes is missed too."""
        return self.check.finished_at if self.check else self.first_seen


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the exported gauges are made from; keys are (model, version)."""

    watched: dict[tuple[str, str], Watched]
    last_window: dict[tuple[str, str], datetime]
    """Of every deployed version: the end of its newest window, or its deployment where that is later; never to come."""
    runbooks: dict[str, int]
    states: dict[tuple[str, str], VersionState] = field(default_factory=dict)
    """Of every version that an agent was heard to serve, or refused, in the last `GAP_DAYS`."""
    progress: tuple[Progress, ...] = ()
    """Of the same versions, but those that were refused."""

    @classmethod
    def read(
        cls, store: SnapshotStore, now: datetime, stale: timedelta, paired: timedelta, runbooks: dict[str, int]
    ) -> Snapshot:
        """Reads the store as of ``now``; a version is watched for ``stale`` after its windows, ``paired`` after its
        comparisons."""
        checks = {stored.check.model_version_id: stored.check for stored in store.latest_checks(since=now - stale)}
        watched: dict[tuple[str, str], Watched] = {}
        serving = store.current_versions(now)
        # A version's name may have been used again for another file: the one that lives longest speaks for it.
        windows = store.versions(since=now - stale)
        live = {v.id: (v.last_window_end + stale, v) for v in windows if v.last_window_end is not None}
        for version, end in store.compared_versions(since=now - paired):
            live.setdefault(version.id, (end + paired, version))
        for until, version in sorted(live.values(), key=lambda pair: (pair[0], pair[1].id)):
            if version.superseded(serving):
                continue  # its findings have ended with it
            key = (version.model, version.version)
            watched[key] = Watched(*key, until, version.first_seen, checks.get(version.id))
        last_window: dict[tuple[str, str], datetime] = {}
        for version in serving:
            times = [t for t in (version.last_window_end, version.deployed_at, version.first_seen) if t is not None]
            newest, key = min(max(times), now), (version.model, version.version)
            if now - newest <= timedelta(days=GAP_DAYS):
                last_window[key] = max(newest, last_window.get(key, newest))
        states = version_states(store.agent_states(now))
        progress = tuple(one for one in store.progress() if (one.model, one.version) in states)
        return cls(watched, last_window, dict(runbooks), states, progress)
