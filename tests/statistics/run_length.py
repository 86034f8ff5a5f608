"""How long the detector stays silent while nothing happens, and how soon it speaks when something does.

Every simulated model has a reference of its own, frozen, made of windows like those that follow; so the reference's
error, which no later window averages out, is in the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import cycle, islice

import numpy as np
from scipy.stats import binom, chi2

from agent.summary import Summary, merge
from agent.summary.histogram import Floats
from detector.statistics.reference_error import REFERENCE_RISK
from detector.statistics.sequential import AlarmEvidence, advance
from tests.statistics.draws import INDEPENDENT, Mood, Sessions, draw, part
from tests.statistics.laws import Law, at_omega, cells, day, hurdle, stretch_at, zeros_at
from tests.statistics.parallel import spread
from tests.statistics.product import Watch
from tests.statistics.rates import CONFIDENCE, most_alarms
from tests.statistics.scenarios import OMEGAS

MODELS = 50
"""Simulated at once by one worker."""
REFERENCE_WINDOWS = 12
"""Of most lives: a day, where the hour matters."""
LONG = 90 * 288.0
"""Windows of five minutes in the 90 days of the default budget."""


@dataclass(frozen=True, slots=True)
class Life:
    """One way for models to live, all of whose windows are alike."""

    name: str
    before: Law
    now: Law
    budget: float
    """Windows between false alarms."""
    n: int = 200
    """Requests in a window."""
    channels: int = 1
    sessions: Sessions = INDEPENDENT
    min_effect: float = 0.1
    reference_risk: float = REFERENCE_RISK
    family: str = "drift"
    """Or "dead" or "explosion": which evidence is watched."""
    daily: bool = False
    """Windows follow the hours of a day over and over, instead of ``before`` and ``now``."""
    changed: int | None = None
    """Channels that follow ``now``; the others stay as they were. None: all."""
    mood: Mood | None = None
    """Instead of ``before`` and ``now``."""
    reference_windows: int = REFERENCE_WINDOWS


@dataclass(frozen=True, slots=True)
class Lives:
    """What became of many models."""

    life: Life
    models: int
    windows: int
    alarms: int
    """Onsets, the repeated ones of a model too."""
    first: Floats
    """Windows until each model's first alarm; infinite without one."""

    @property
    def run_length(self) -> float:
        """Windows between alarms."""
        return self.models * self.windows / self.alarms if self.alarms else float("inf")

    @property
    def at_least(self) -> float:
        """Lower confidence bound of `run_length`, of Poisson-distributed alarms."""
        return float(2 * self.models * self.windows / chi2.isf(CONFIDENCE, 2 * self.alarms + 2))

    @property
    def alarmed(self) -> int:
        """Models with an alarm."""
        return int(np.isfinite(self.first).sum())

    @property
    def allowed(self) -> int:
        """Models that may have alarmed by now, P(alarm by t) <= t / budget, with the limits of chance."""
        return int(binom.isf(CONFIDENCE, self.models, min(1.0, self.windows / self.life.budget)))

    @property
    def valid(self) -> bool:
        return self.alarmed <= self.allowed

    @property
    def keeps_budget(self) -> bool:
        """Whether so many alarms are within the limits of chance for one alarm per budget."""
        return self.alarms <= most_alarms(self.models * self.windows / self.life.budget)

    def delay(self) -> tuple[float, float, float]:
        """Share of models that alarmed, median and 90 % quantile of windows until then (infinite if fewer did)."""
        ordered = np.sort(self.first)
        return self.alarmed / self.models, float(np.median(self.first)), float(ordered[int(0.9 * (len(ordered) - 1))])


@dataclass(frozen=True, slots=True)
class _Piece:
    life: Life
    windows: int
    models: int
    seed: tuple[int, ...]


def quiet_lives() -> list[Life]:
    """Nothing changes, or no more than is tolerated."""
    dense, seven = hurdle(0.0), np.full(7, 1 / 7)
    tolerated = cells(at_omega(0.1, 7, "alternating"))
    linked = Sessions(5, 0.5)
    lives = []
    for budget in (100.0, LONG):
        lives += [
            Life("iid, no zeros", dense, dense, budget),
            Life("iid, no zeros, 20 channels", dense, dense, budget, channels=20),
            Life("iid, 90% zeros", hurdle(0.9), hurdle(0.9), budget),
            Life("iid, heavy tails", hurdle(0.0, "heavy"), hurdle(0.0, "heavy"), budget),
            Life("iid, ω = δ", cells(seven), tolerated, budget),
            Life("iid, 50% zeros at ω = δ", hurdle(0.5), hurdle(zeros_at(0.1, 0.5)), budget),
            Life("diurnal, reference of a whole day", dense, dense, budget, daily=True),
            Life("sessions of 5, no zeros", dense, dense, budget, sessions=linked),
            Life("sessions of 5, 20 channels", dense, dense, budget, channels=20, sessions=linked),
            Life("sessions of 20, 50% zeros", hurdle(0.5), hurdle(0.5), budget, sessions=Sessions(20, 0.5)),
        ]
        heavy = hurdle(0.5, "heavy")
        lives += [
            Life("explosion, iid, heavy tails", heavy, heavy, budget, family="explosion"),
            Life("explosion, sessions of 5, heavy tails", heavy, heavy, budget, sessions=linked, family="explosion"),
        ]
        for zeros in (0.9, 0.97):
            law = hurdle(zeros)
            lives += [
                Life(f"death, iid, {zeros:.0%} zeros", law, law, budget, family="dead"),
                Life(f"death, sessions of 5, {zeros:.0%} zeros", law, law, budget, sessions=linked, family="dead"),
            ]
    return lives


def changed_lives() -> list[Life]:
    """Shifts by effect size, size of window, and share of channels concerned."""
    lives = []
    for n in (200, 1000):
        for omega in OMEGAS:
            dense, moved = hurdle(0.0), hurdle(0.0, stretch=stretch_at(omega))
            sparse, woken = hurdle(0.9), hurdle(zeros_at(omega, 0.9))
            lives += [
                Life(f"values ω {omega:g}", dense, moved, LONG, n),
                Life(f"values ω {omega:g}, 1 channel of 50", dense, moved, LONG, n, channels=50, changed=1),
                Life(f"90% zeros, zeros ω {omega:g}", sparse, woken, LONG, n),
                Life(f"sessions of 5, values ω {omega:g}", dense, moved, LONG, n, sessions=Sessions(5, 0.5)),
            ]
        for zeros in (0.7, 0.9, 0.97):
            lives.append(
                Life(
                    f"death of 1 channel of 50, {zeros:.0%} zeros",
                    hurdle(zeros),
                    hurdle(1.0),
                    LONG,
                    n,
                    channels=50,
                    changed=1,
                    family="dead",
                )
            )
    return lives


def moody_lives() -> list[Life]:
    """Moods of the traffic, of many strengths and lengths, against references that have seen few or many of them."""
    return [
        Life(f"{swing:g}", dense, dense, LONG, mood=Mood(swing, correlation), reference_windows=windows)
        for dense in [hurdle(0.0)]
        for swing in (0.02, 0.05, 0.1)
        for correlation in (0.0, 0.5, 0.9, 0.98)
        for windows in (10, 40, 160)
    ]


def live(lives: Sequence[Life], models: int, windows: int, workers: int, seed: int = 0) -> list[Lives]:
    """Simulates so many models of each kind for so many windows."""
    per_piece = min(MODELS, models)
    pieces = [
        _Piece(life, windows, per_piece, (seed, number, piece))
        for number, life in enumerate(lives)
        for piece in range(-(-models // per_piece))
    ]
    gathered: dict[int, list[tuple[int, Floats]]] = {}
    for piece, result in zip(pieces, spread("run lengths", _simulate, pieces, workers), strict=True):
        gathered.setdefault(piece.seed[1], []).append(result)
    return [
        Lives(
            lives[number],
            sum(len(first) for _, first in parts),
            windows,
            sum(alarms for alarms, _ in parts),
            np.concatenate([first for _, first in parts]),
        )
        for number, parts in gathered.items()
    ]


def _simulate(piece: _Piece) -> tuple[int, Floats]:
    """Alarms, and windows until each model's first."""
    life, rng = piece.life, np.random.default_rng(piece.seed)
    width = piece.models * life.channels
    stream = _windows(life, width, rng)
    past = list(islice(stream, life.reference_windows))
    spans = [slice(i * life.channels, (i + 1) * life.channels) for i in range(piece.models)]
    watch = Watch(
        reduce(merge, past),
        [[part(window, span.start, span.stop) for window in past] for span in spans],
        life.n,
        life.min_effect,
        life.reference_risk,
    )
    evidence = [AlarmEvidence() for _ in spans]
    first, alarms = np.full(piece.models, np.inf), 0
    moved = np.arange(width) % life.channels < (life.channels if life.changed is None else life.changed)
    for number in range(1, piece.windows + 1):
        e = watch.e_values(next(stream), life.family)
        if not moved.all():
            same = watch.e_values(draw(life.before, life.n, width, rng, life.sessions), life.family)
            e = np.where(moved if e.ndim == 1 else moved[:, None], e, same)
        for model, span in enumerate(spans):
            was = evidence[model].alarm
            evidence[model] = advance(evidence[model], {"layer": e[span]}, 1.0, life.budget)
            if evidence[model].alarm and not was:
                alarms += 1
                first[model] = min(first[model], number)
        if life.before is not life.now and np.isfinite(first).all():
            break
    return alarms, first


def _windows(life: Life, width: int, rng: np.random.Generator) -> Iterator[Summary]:
    """The reference's, then those that follow, for ever."""
    if life.mood is not None:
        yield from life.mood.windows(life.n, width, rng)
    hours = day(0.1, 0.05)
    before, now = (hours, hours) if life.daily else ([life.before], [life.now])
    for i in range(life.reference_windows):
        yield draw(before[i % len(before)], life.n, width, rng, life.sessions)
    for law in cycle(now):
        yield draw(law, life.n, width, rng, life.sessions)
