"""The null cases: nothing has changed, or just as much as is tolerated, and the tests must hold their level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agent.summary.histogram import Floats
from detector.bins import bin_count
from detector.dead import dead
from detector.drift import drift
from detector.explosion import explosion
from tests.statistics.draws import INDEPENDENT, Sessions, draw
from tests.statistics.laws import Law, at_omega, cells, hurdle, mixture, zeros_at

SIZES = [(800, 300), (1000, 3000), (20_000, 20_000)]
"""Requests in the reference and in the windows."""
TOLERATED = 0.1
LAYER = 50
"""Channels of a layer, where a test looks at a layer as a whole."""
SHAPES = ("alternating", "up", "down")
Test = Callable[[Law, Law, int, int, int, np.random.Generator], Floats]
"""P-values of so many channels: reference's law, current law, requests of both, channels, generator."""


@dataclass(frozen=True, slots=True)
class Null:
    """One case: a test, what it is given, and a name for the table."""

    test: str
    name: str
    n_reference: int
    n: int
    before: Law
    now: Law
    p_values: Test
    expected: str = "valid"
    """"valid", or why a rate above its limit is right."""

    def draw(self, channels: int, rng: np.random.Generator) -> Floats:
        """P-values of independent channels."""
        return self.p_values(self.before, self.now, self.n_reference, self.n, channels, rng)


def _drift(min_effect: float, sessions: Sessions = INDEPENDENT) -> Test:
    def test(before: Law, now: Law, n0: int, n: int, channels: int, rng: np.random.Generator) -> Floats:
        old, new = draw(before, n0, channels, rng, sessions), draw(now, n, channels, rng, sessions)
        return drift(old, new, min_effect).p_value

    return test


def _dead(before: Law, now: Law, n0: int, n: int, channels: int, rng: np.random.Generator) -> Floats:
    return dead(draw(before, n0, channels, rng), draw(now, n, channels, rng)).p_value


def _explosion(before: Law, now: Law, n0: int, n: int, channels: int, rng: np.random.Generator) -> Floats:
    # In layers: against the largest maximum of all drawn channels none would ever explode.
    found = []
    for start in range(0, channels, LAYER):
        size = min(LAYER, channels - start)
        found.append(explosion(draw(before, n0, size, rng), draw(now, n, size, rng), factor=2.0).p_value)
    return np.concatenate(found)


def _equal_cells(n0: int, n: int, shape: str | None = None) -> Law:
    """As many values as the test has bins, of equal shares or at the tolerated omega from those."""
    count = int(bin_count(np.array([n]), np.array([n0]))[0])
    return cells(np.full(count, 1 / count) if shape is None else at_omega(TOLERATED, count, shape))


def _by_day(swing: float = 0.5, hours: int = 24) -> list[Law]:
    """The hours of a day: brighter at noon, and fewer zeros then."""
    height = np.sin(2 * np.pi * np.arange(hours) / hours)
    return [hurdle(0.5 - 0.2 * h, stretch=float(np.exp(swing * h))) for h in height]


def _no_effect() -> list[Null]:
    laws = {f"iid, {zeros:.0%} zeros": hurdle(zeros) for zeros in (0.0, 0.5, 0.9, 0.99)}
    laws |= {"heavy tails, 50% zeros": hurdle(0.5, "heavy"), "heavy tails, 99% zeros": hurdle(0.99, "heavy")}
    day = _by_day()
    laws["diurnal, whole days"] = mixture(day, np.full(24, 1 / 24))
    laws["diurnal, same hour"] = day[6]
    return [
        Null("drift, no tolerance", name, n0, n, law, law, _drift(0.0))
        for name, law in laws.items()
        for n0, n in SIZES[:2]
    ]


def _tolerated() -> list[Null]:
    found = []
    for n0, n in SIZES:
        equal = _equal_cells(n0, n)
        for shape in SHAPES:
            name = f"iid, values at ω = δ, {shape}"
            found.append(Null("drift, δ = 0.1", name, n0, n, equal, _equal_cells(n0, n, shape), _drift(TOLERATED)))
    for zeros in (0.5, 0.9, 0.99):
        before, now = hurdle(zeros), hurdle(zeros_at(TOLERATED, zeros))
        for n0, n in SIZES[:2]:
            name = f"iid, {zeros:.0%} zeros at ω = δ"
            found.append(Null("drift, δ = 0.1", name, n0, n, before, now, _drift(TOLERATED)))
    return found


def _others() -> list[Null]:
    found = [
        Null("dead", f"iid, {zeros:.0%} zeros", n0, n, hurdle(zeros), hurdle(zeros), _dead)
        for zeros in (0.5, 0.9, 0.97, 0.99)
        for n0, n in SIZES[:2]
    ]
    for values in ("gamma", "heavy"):
        law = hurdle(0.5, values)
        found += [Null("explosion", f"iid, {values}", n0, n, law, law, _explosion) for n0, n in SIZES[:2]]
    return found


def nulls() -> list[Null]:
    """Every case of the table, in its order."""
    return [*_no_effect(), *_tolerated(), *_others()]
