"""A model version's batches of windows against one reference, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from detector.checks.examine import Measured, accumulate, measure
from detector.checks.needs import CheckStore
from detector.domain.batches import Batch
from detector.domain.layered import Layered
from detector.domain.settings import CheckSettings
from detector.domain.slots import matching
from detector.domain.types import AlarmState, ModelVersion, Reference
from detector.statistics.sequential import FAMILIES, AlarmEvidence, without


class Against:
    """Tests a version's windows against a reference."""

    def __init__(self, store: CheckStore, version: ModelVersion, base: Reference, settings: CheckSettings) -> None:
        self._store = store
        self._version = version
        self.base = base
        self.settings = settings
        self._probes = store.probes(version.id)

    def taken_in(
        self, state: AlarmState | None, batches: Sequence[Batch]
    ) -> tuple[Batch, Measured, dict[str, AlarmEvidence]]:
        """The newest batch, its tests, and the evidence so far with all batches; without any, of what is stored.

        Raises ValueError where nothing is stored either.
        """
        # A family that the release before did not know has no evidence yet.
        kept = state.families if state else {}
        evidence = {family: kept.get(family, AlarmEvidence()) for family in FAMILIES}
        if not batches:
            if state is None:
                raise ValueError("there is nothing to test")
            return state.last, self._measured(state.last), evidence  # nothing new: the same is said again
        for batch in batches:
            measured = self._measured(batch)
            evidence = self._without_gone(evidence, measured, batch.end)
            evidence = accumulate(evidence, measured, batch.days, self.settings)
        return batch, measured, evidence

    def _measured(self, batch: Batch) -> Measured:
        base, number, settings = self.base, self._version.id, self.settings
        current = self._store.summaries(number, batch.start, batch.end)
        slot = matching(base.slots, batch)
        before = self._store.reference_slot(base.id, slot) if slot else Layered(base.summaries, base.effects)
        agents = self._store.agents(number, batch.start, batch.end)
        requests = batch.n / batch.windows
        return measure(self._probes, before.summaries, current, settings, before.effects, requests, agents)

    def _without_gone(
        self, evidence: dict[str, AlarmEvidence], measured: Measured, end: datetime
    ) -> dict[str, AlarmEvidence]:
        """Without the agents that have sent nothing for as long as evidence lives: pods come and go under new names."""
        known = evidence["fleet"]
        absent = set(known.layers) - set(measured.fleet.agents if measured.fleet else ())
        if not absent:
            return evidence
        since = end - timedelta(seconds=self.settings.lookback_seconds)
        gone = absent - self._store.live_agents(self._version.id, absent, since)
        return {**evidence, "fleet": without(known, gone)} if gone else evidence
