"""Whole lives of models on which nothing happens, through the product's own path, at the shipped budget.

A model's reference is chosen as the detector chooses it, windows are cut into batches as it cuts them, every batch is
measured in all test families and added to the evidence; the settings are the shipped ones. What is counted are alarms.
Every life has a population and a reference of its own, so what holds here holds on average over both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import numpy as np

from agent.summary.histogram import Ints
from detector.checks.examine import accumulate, measure
from detector.domain.batches import Batch, Span, cut
from detector.domain.layered import Layered
from detector.domain.settings import CheckSettings
from detector.domain.slots import matching
from detector.domain.types import Reference
from detector.references.choice import ensure
from detector.references.making import from_windows
from detector.statistics.fleet import Agents
from detector.statistics.sequential import FAMILIES, AlarmEvidence, threshold
from tests.detector.fakes import START, FakeStore
from tests.statistics import populations
from tests.statistics.networks import network
from tests.statistics.parallel import spread
from tests.statistics.populations import LAWS, Population, Rng
from tests.statistics.rates import most_alarms
from tests.statistics.traffic import Capture, Traffic

HOUR = timedelta(hours=1)
MIDNIGHT = START.replace(hour=0)
AGENTS = 4
SETTINGS = CheckSettings()
STEADY = Traffic()


@dataclass(frozen=True, slots=True)
class Null:
    """One way to live in which nothing happens."""

    name: str
    population: Callable[[Rng], Population]
    """Made anew for every life."""
    traffic: Traffic = STEADY
    reference_hours: int = 0
    """Of windows that `reluscope reference set` makes the reference of; 0 for the automatic one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the models of one null."""

    null: Null
    models: int
    days: float
    """Of all models together."""
    alarms: dict[str, int] = field(default_factory=dict)
    """Onsets by family."""
    largest: float = 0.0
    """Of all evidence ever, as a share of the threshold."""

    @property
    def found(self) -> int:
        return sum(self.alarms.values())

    @property
    def allowed(self) -> float:
        """Pages that the budget grants in so many days. One part of it is for paired tests, which are not run."""
        return self.days / SETTINGS.false_page_days

    @property
    def keeps_budget(self) -> bool:
        """Whether so many alarms are within the limits of chance."""
        return self.found <= most_alarms(self.allowed)


def nulls() -> list[Null]:
    """Families of laws, populations that hang together, kinds of traffic, and real networks."""
    families = [Null(name, partial(populations.plain, law)) for name, law in LAWS.items()]
    whole = [
        Null("copies of one channel", populations.copies),
        Null("requests that switch all channels", populations.switching),
        Null("random families", populations.anything),
    ]
    small, large = Traffic(requests=60), Traffic(requests=2000)
    traffic = [
        Null("random families, windows of 60", populations.anything, small),
        Null("random families, windows of 2000", populations.anything, large),
        Null("random families, sessions of 4", populations.anything, Traffic(session=4)),
        Null("requests that switch, sessions of 4", populations.switching, Traffic(session=4)),
        Null("shared moods", populations.two_kinds, Traffic(mood=0.05, memory=0.5), reference_hours=40),
        Null("day and night", populations.two_kinds, Traffic(requests=300, daily=0.3), reference_hours=6 * 24),
    ]
    return [*families, *whole, *traffic]


def real() -> list[Null]:
    """Real networks on real pictures."""
    return [
        Null("digits CNN", partial(network, "digits")),
        Null("digits CNN, sessions of 4", partial(network, "digits"), Traffic(session=4)),
        Null("SqueezeNet on pictures", partial(network, "squeezenet")),
        Null("Inception v1 on pictures", partial(network, "inception_v1")),
    ]


class _Store(FakeStore):
    """Also hands out agents' scalars, by the start of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars: dict[datetime, Agents] = {}

    def agents(self, version_id: int, start: datetime, end: datetime) -> Agents:
        return self.scalars.get(start, {})


class Model:
    """A model's life: its reference, then batch after batch."""

    def __init__(self, null: Null, rng: Rng) -> None:
        self.population = null.population(rng)
        self._capture = Capture(self.population)
        self._windows = null.traffic.windows(self.population, rng)
        self.store = _Store()
        self.version = self.store.add_version("1", list(self.population.probes), MIDNIGHT)
        self._at = MIDNIGHT
        self.reference = self._referenced(null.reference_hours)

    def _referenced(self, hours: int) -> Reference:
        held = self.store.windows[self.version.id]
        for number in range(1, 1 << 20):
            requests = next(self._windows)
            held.append((Span(self._at, self._at + HOUR, len(requests)), self._capture.summaries(requests)))
            self._at += HOUR
            if number < hours:
                continue
            if hours:
                return from_windows(self.store, self.version, MIDNIGHT, self._at)
            made = ensure(self.store, self.version, SETTINGS.reference_requests, self._at, SETTINGS.reference_windows)
            if made is not None:
                return made
        raise AssertionError("no reference after a million windows")

    def look_again(self) -> None:
        """Takes in what has been done to the population since."""
        self._capture = Capture(self.population)

    def batches(self) -> Iterator[tuple[Batch, Ints]]:
        """For ever: spans as the detector cuts them, and their requests."""
        drawn: list[Ints] = []

        def spans() -> Iterator[Span]:
            while True:
                drawn.append(next(self._windows))
                yield Span(self._at, self._at + HOUR, len(drawn[-1]))
                self._at += HOUR

        for batch in cut(spans(), SETTINGS.min_requests, SETTINGS.lookback_windows):
            yield batch, np.concatenate(drawn[-batch.windows :])
            drawn.clear()

    def evidence(self, count: int, keep: bool = False) -> Iterator[tuple[Batch, dict[str, AlarmEvidence]]]:
        """After each of ``count`` batches; ``keep`` puts them into the store, as one window each."""
        evidence: dict[str, AlarmEvidence] = {}
        whole = Layered(self.reference.summaries, self.reference.effects)
        stream = self.batches()
        for _ in range(count):
            batch, requests = next(stream)
            slot = matching(self.reference.slots, batch)
            now, agents = self._capture.summaries(requests), self._capture.agents(requests, AGENTS)
            if keep:
                self.store.windows[self.version.id].append((Span(batch.start, batch.end, batch.n), now))
                self.store.scalars[batch.start] = agents
            before = self.store.reference_slot(self.reference.id, slot) if slot else whole
            measured = measure(
                self.population.probes, before.summaries, now, SETTINGS, before.effects, batch.n / batch.windows, agents
            )  # fmt: skip
            evidence = accumulate(evidence, measured, batch.days, SETTINGS)
            yield batch, evidence


@dataclass(frozen=True, slots=True)
class _Piece:
    null: Null
    batches: int
    seed: tuple[int, ...]


def live(these: Sequence[Null], models: int, batches: int, workers: int, seed: int = 0) -> list[Outcome]:
    """Follows so many models of each null for so many batches."""
    pieces = [
        _Piece(null, batches, (seed, number, model)) for number, null in enumerate(these) for model in range(models)
    ]
    found = list(spread("lives", _life, pieces, workers))
    outcomes = []
    for number, null in enumerate(these):
        mine = found[number * models : (number + 1) * models]
        alarms = {family: sum(one.alarms[family] for one in mine) for family in FAMILIES}
        outcomes.append(Outcome(null, models, sum(one.days for one in mine), alarms, max(one.largest for one in mine)))
    return outcomes


def _life(piece: _Piece) -> Outcome:
    model = Model(piece.null, np.random.default_rng(piece.seed))
    alarms, days, largest = dict.fromkeys(FAMILIES, 0), 0.0, 0.0
    was = dict.fromkeys(FAMILIES, False)
    for batch, evidence in model.evidence(piece.batches):
        days += batch.days
        for family, one in evidence.items():
            alarms[family] += one.alarm and not was[family]
            was[family] = one.alarm
            largest = max(largest, one.level / threshold(SETTINGS.false_page_days))
    return Outcome(piece.null, 1, days, alarms, largest)
