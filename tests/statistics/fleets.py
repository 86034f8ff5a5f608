"""Fleets of agents, healthy ones and ones with an odd pod: false alarms, and how soon the odd one is named.

Each simulated model has three layers and a reference of its own, whose design effect is estimated from its windows. An
agent's layer is the mean of a number of independent sessions, of a rectifier that is zero with a probability and else
gamma distributed, so its sums can be drawn without drawing requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce

import numpy as np

from agent.summary import Summary, from_pooled, merge
from agent.wire import Probe
from detector.statistics.design_effect import estimate
from detector.statistics.fleet import Agents, Scalars, compare, e_values
from detector.statistics.sequential import AlarmEvidence, advance, threshold
from tests.statistics.pages import Page
from tests.statistics.parallel import spread
from tests.statistics.rates import most_alarms
from tests.statistics.tables import table

CHANNELS = 8
REFERENCE_WINDOWS, REFERENCE_REQUESTS = 12, 500
"""Windows, and requests in each."""
LAYERS = ("image", "conv1", "conv2")
TIGHT = 20.0
"""Batches between false alarms: a budget that nulls are held against."""
BATCH_DAYS = 5 / 1440
MODELS = 10
"""Simulated by one worker at once."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One way for a fleet to be."""

    name: str
    agents: int
    requests: int = 200
    """Of an agent in a batch."""
    first: int = 1
    """The first agent has so many times as many."""
    sessions: int = 1
    """Requests that are one and the same, before the next session begins."""
    zeros: float = 0.5
    correlated: bool = True
    """All channels of a request move together, which is the worst case; else each for itself."""
    spread: float = 0.0
    """Standard deviation of the agents' own lasting offsets, in the layers' standard deviations."""
    shift: float = 0.0
    """Of the last agent's rectifiers, likewise."""
    moved: float = 0.0
    """Of all agents alike."""

    @property
    def sizes(self) -> list[int]:
        """Requests by agent."""
        return [self.requests * self.first, *[self.requests] * (self.agents - 1)]

    @property
    def unit(self) -> float:
        """Standard deviation of a channel; the gamma law has shape 2, so mean 2 and mean square 6."""
        active = 1 - self.zeros
        return math.sqrt(6 * active - (2 * active) ** 2)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the models of one scene."""

    scene: Scene
    models: int
    batches: int
    alarms: int
    """Onsets under a budget of `TIGHT` batches; under the default one where pods differ."""
    alarmed: int
    """Models with an alarm."""
    mean_e: float
    found: tuple[float, ...]
    """Batches until each model's alarm under the default budget; infinite without one. Only with an odd pod."""

    @property
    def keeps_budget(self) -> bool:
        """Whether so many alarms are within the limits of chance for one alarm per budget."""
        return self.alarms <= most_alarms(self.models * self.batches / TIGHT)

    def delay(self) -> tuple[float, float]:
        """Median, and what nine of ten models do not exceed."""
        ordered = sorted(self.found)
        return float(np.median(ordered)), ordered[math.ceil(0.9 * len(ordered)) - 1]


def quiet() -> list[Scene]:
    """Fleets without an odd pod."""
    scenes = []
    for agents in (3, 4, 10, 30):
        scenes += [
            Scene("equal pods", agents),
            Scene("equal pods, 90 % zeros", agents, zeros=0.9),
            Scene("few requests", agents, requests=30),
            Scene("one pod has a hundred times the traffic", agents, first=100, requests=30),
            Scene("sessions of 5", agents, sessions=5),
            Scene("all shifted by 1", agents, moved=1.0),
        ]
    return scenes


def spread_out() -> list[Scene]:
    """Fleets whose pods differ for good, as where sessions stick to them."""
    return [Scene("natural spread", agents, spread=tau) for tau in (0.05, 0.1, 0.3) for agents in (3, 4, 10, 30)]


def odd() -> list[Scene]:
    """Fleets with one odd pod."""
    return [
        Scene("odd pod", agents, requests, correlated=correlated, shift=shift)
        for correlated in (True, False)
        for requests in (50, 200, 1000)
        for agents in (3, 4, 10)
        for shift in (0.3, 0.5, 1.0)
    ]


@dataclass(frozen=True, slots=True)
class _Piece:
    scene: Scene
    batches: int
    models: int
    seed: tuple[int, ...]


def live(scenes: Sequence[Scene], models: int, batches: int, workers: int, seed: int = 0) -> list[Outcome]:
    """Plays every scene with so many models, each for so many batches, or until the odd pod is found."""
    parts = -(-models // MODELS)
    pieces = [
        _Piece(scene, batches, min(MODELS, models - part * MODELS), (seed, number, part))
        for number, scene in enumerate(scenes)
        for part in range(parts)
    ]
    done = list(spread("fleet", _work, pieces, workers))
    return [_together(done[i * parts : (i + 1) * parts]) for i in range(len(scenes))]


def _together(parts: Sequence[Outcome]) -> Outcome:
    models = sum(one.models for one in parts)
    return Outcome(
        parts[0].scene,
        models,
        parts[0].batches,
        sum(one.alarms for one in parts),
        sum(one.alarmed for one in parts),
        sum(one.mean_e * one.models for one in parts) / models,
        tuple(found for one in parts for found in one.found),
    )


def _work(piece: _Piece) -> Outcome:
    rng = np.random.default_rng(piece.seed)
    lives = [_Life(piece.scene, rng) for _ in range(piece.models)]
    for one in lives:
        one.play(piece.batches)
    return Outcome(
        piece.scene,
        piece.models,
        piece.batches,
        sum(one.alarms for one in lives),
        sum(one.alarms > 0 for one in lives),
        float(np.mean([np.mean(one.means) for one in lives])),
        tuple(one.found for one in lives) if piece.scene.shift else (),
    )


class _Life:
    """One model version and its fleet."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self._scene, self._rng = scene, rng
        self.alarms, self.found = 0, math.inf
        self.means: list[float] = []
        self._probes = [
            Probe(name, "Relu", name, CHANNELS, 1, "activation" if i else "input", i, i > 0)
            for i, name in enumerate(LAYERS)
        ]
        windows = [{name: self._window() for name in LAYERS} for _ in range(REFERENCE_WINDOWS)]
        self._reference = {name: reduce(merge, [one[name] for one in windows]) for name in LAYERS}
        self._effects = {name: estimate(self._reference[name], [one[name] for one in windows]) for name in LAYERS}
        self._offsets = scene.moved + scene.spread * rng.normal(size=scene.agents)

    def play(self, batches: int) -> None:
        """Batches one after the other."""
        odd = self._scene.shift > 0
        days, limit = (BATCH_DAYS, threshold(90)) if odd or self._scene.spread else (1.0, TIGHT)
        evidence = AlarmEvidence()
        for batch in range(1, batches + 1):
            fleet = compare(
                self._agents(), self._probes, self._reference, self._reference, self._effects, REFERENCE_REQUESTS
            )
            e = e_values(evidence, fleet)
            self.means.append(float(np.mean(list(e.values()))))
            before, evidence = evidence.alarm, advance(evidence, e, days, limit)
            self.alarms += evidence.alarm and not before
            if odd and evidence.alarm:
                self.found = batch
                return

    def _window(self) -> Summary:
        """Of the reference, request by request."""
        scene, rng = self._scene, self._rng
        shape = (-(-REFERENCE_REQUESTS // scene.sessions), 1 if scene.correlated else CHANNELS)
        drawn = np.where(rng.random(shape) < scene.zeros, 0.0, rng.gamma(2.0, size=shape))
        values = np.repeat(drawn, scene.sessions, axis=0)[:REFERENCE_REQUESTS] * np.ones(CHANNELS)
        return from_pooled(values, values, (values > 0).astype(np.float64))

    def _agents(self) -> Agents:
        scene, found = self._scene, {}
        for agent, size in enumerate(scene.sizes):
            odd = scene.shift if agent == scene.agents - 1 else 0.0
            moved = [self._offsets[agent] + odd * (layer > 0) for layer in range(len(LAYERS))]
            found[f"pod-{agent}"] = {name: self._scalars(size, by) for name, by in zip(LAYERS, moved, strict=True)}
        return found

    def _scalars(self, n: int, moved: float) -> Scalars:
        scene, sessions = self._scene, n // self._scene.sessions
        active = self._rng.binomial(sessions, 1 - scene.zeros, size=1 if scene.correlated else CHANNELS)
        total = self._rng.gamma(2.0 * np.maximum(active, 1e-12))
        mean = float(total.mean()) / sessions + moved * scene.unit
        return Scalars(n, n * CHANNELS, float(active.mean()) / sessions, mean, 9.0, 0)


def page(quiet_ones: Sequence[Outcome], spread_ones: Sequence[Outcome], odd_ones: Sequence[Outcome]) -> Page:
    """The tables, and their figures."""
    text = (
        f"## While nothing happens\n\nUnder a budget of one alarm in {TIGHT:g} batches; more alarms than chance allows "
        f"would be bold.\n\n{_quiet(quiet_ones)}\n"
        "## Pods that differ by nature\n\nEvery agent has an offset of its own that lasts, in standard deviations of "
        "the reference, normally distributed. Models with an alarm under the default budget:\n\n"
        f"{_spread(spread_ones)}\n"
        "## One odd pod\n\nIts rectifiers are shifted, in standard deviations of the reference. Batches of five "
        "minutes until it is found, median / nine of ten, under the default budget; a dash: not within "
        f"{odd_ones[0].batches}.\n\n"
        f"{delays(odd_ones)}"
    )
    figures = {
        name: [_figures(one) for one in outcomes]
        for name, outcomes in (("quiet", quiet_ones), ("spread", spread_ones), ("odd", odd_ones))
    }
    return Page("One odd pod", text, figures)


def _figures(one: Outcome) -> dict[str, object]:
    told: dict[str, object] = {
        "models": one.models,
        "batches": one.batches,
        "alarms": one.alarms,
        "models_with_alarm": one.alarmed,
    }
    if one.found:
        median, late = (None if math.isinf(value) else value for value in one.delay())
        told |= {"median_batches": median, "late_batches": late}
    return {**asdict(one.scene), "mean_e": one.mean_e, **told}


def _quiet(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [
            one.scene.name, str(one.scene.agents), f"{one.models} x {one.batches}", f"{one.mean_e:.2f}",
            str(one.alarms) if one.keeps_budget else f"**{one.alarms}**", f"{one.models * one.batches / TIGHT:.0f}",
        ]
        for one in outcomes
    ]  # fmt: skip
    return table(["fleet", "agents", "models x batches", "mean e", "alarms", "allowed"], rows)


def _spread(outcomes: Sequence[Outcome]) -> str:
    sizes = list(dict.fromkeys(one.scene.agents for one in outcomes))
    rows = [
        [f"{tau:g}", *(f"{one.alarmed} of {one.models}" for one in outcomes if one.scene.spread == tau)]
        for tau in dict.fromkeys(one.scene.spread for one in outcomes)
    ]
    return table(["spread", *(f"{agents} agents" for agents in sizes)], rows)


def delays(outcomes: Sequence[Outcome]) -> str:
    """One row per number of agents and requests, one column per shift."""
    shifts = list(dict.fromkeys(one.scene.shift for one in outcomes))
    rows: dict[tuple[bool, int, int], list[str]] = {}
    for one in outcomes:
        told = " / ".join("–" if math.isinf(value) else f"{value:.0f}" for value in one.delay())
        rows.setdefault((one.scene.correlated, one.scene.requests, one.scene.agents), []).append(told)
    lines = [
        ["move together" if correlated else "independent", str(requests), str(agents), *told]
        for (correlated, requests, agents), told in rows.items()
    ]
    return table(["channels", "requests of an agent", "agents", *(f"shift {shift:g}" for shift in shifts)], lines)
