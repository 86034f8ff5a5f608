"""The null cases: nothing has changed, or just as much as is tolerated, and the tests must hold their level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from agent.summary import Summary, merge
from agent.summary.histogram import Floats
from detector.paired.statistics import mcnemar
from detector.statistics.bins import bin_count
from detector.statistics.dead import dead
from detector.statistics.drift import PARTS, Drift, drift
from detector.statistics.explosion import explosion
from tests.statistics.draws import INDEPENDENT, Sessions, draw, part
from tests.statistics.laws import COARSE, Law, at_omega, cells, day, hurdle, mixture, zeros_at
from tests.statistics.product import Watch

SIZES = [(800, 300), (1000, 3000), (20_000, 20_000)]
"""Requests in the reference and in the windows."""
TOLERATED = 0.1
LAYER = 50
"""Channels of a layer, where a test looks at a layer as a whole."""
SHAPES = ("alternating", "up", "down")
Test = Callable[[Law, Law, int, int, int, np.random.Generator], Floats]
"""P-values of so many channels: reference's law, current law, requests of both, channels, generator. Shape (channels,),
or (channels, columns) where a test has `COLUMNS`."""
COLUMNS = ("drift, combined", *(f"drift, {part}" for part in PARTS))
"""Of the drift test: the p-value of findings, and those of the parts, which gather evidence one by one."""


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

    def draw(self, channels: int, rng: np.random.Generator) -> Floats:
        """P-values of independent channels, shape (channels, len(columns))."""
        p = self.p_values(self.before, self.now, self.n_reference, self.n, channels, rng)
        return p.reshape(len(p), -1)

    @property
    def columns(self) -> tuple[str, ...]:
        """What each column of p-values is of."""
        return COLUMNS if self.test.startswith("drift") else (self.test,)


def _drift(min_effect: float) -> Test:
    def test(before: Law, now: Law, n0: int, n: int, channels: int, rng: np.random.Generator) -> Floats:
        return _columns(drift(draw(before, n0, channels, rng), draw(now, n, channels, rng), min_effect))

    return test


def _columns(result: Drift) -> Floats:
    return np.column_stack([result.p_value, result.p_parts])


def _windowed(sessions: Sessions = INDEPENDENT) -> Test:
    """Against a reference of windows as large as the current one, whose design effect is estimated layer by layer."""

    def test(before: Law, now: Law, n0: int, n: int, channels: int, rng: np.random.Generator) -> Floats:
        past = [draw(before, n, channels, rng, sessions) for _ in range(n0 // n)]
        return _columns(_watch(past, channels, n).drift(draw(now, n, channels, rng, sessions)))

    return test


def _any_hour(before: Law, now: Law, n0: int, n: int, channels: int, rng: np.random.Generator) -> Floats:
    """A window from some hour against a whole day's; the laws given are not used."""
    hours = day(0.1, 0.05)
    past = [draw(law, n, channels, rng) for law in hours]
    return _columns(_watch(past, channels, n).drift(draw(hours[int(rng.integers(len(hours)))], n, channels, rng)))


def _watch(past: list[Summary], channels: int, n: int) -> Watch:
    layers = [[part(w, i, min(i + LAYER, channels)) for w in past] for i in range(0, channels, LAYER)]
    return Watch(reduce(merge, past), layers, n, 0.0, 0.0)


def _dead(before: Law, now: Law, n0: int, n: int, channels: int, rng: np.random.Generator) -> Floats:
    return dead(draw(before, n0, channels, rng), draw(now, n, channels, rng)).p_value


def _paired(before: Law, now: Law, n0: int, n: int, channels: int, rng: np.random.Generator) -> Floats:
    """Requests that activate a channel on one side only: as many on either side. A law's zeros are those that agree."""
    differ = (1 - before.shares[0]) / 2
    one, other, _ = rng.multinomial(n, [differ, differ, 1 - 2 * differ], size=channels).T
    return mcnemar(one, other)


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


def _no_effect() -> list[Null]:
    laws = {f"iid, {zeros:.0%} zeros": hurdle(zeros) for zeros in (0.0, 0.5, 0.9, 0.99)}
    laws |= {"heavy tails, 50% zeros": hurdle(0.5, "heavy"), "heavy tails, 99% zeros": hurdle(0.99, "heavy")}
    hours = day()
    laws["diurnal, whole days"] = mixture(hours, np.full(len(hours), 1 / len(hours)))
    laws["diurnal, same hour"] = hours[3]
    laws |= {f"iid, {zeros:.0%} zeros, graded": hurdle(zeros, graded=True) for zeros in (0.0, 0.9)}
    return [
        Null("drift, no tolerance", name, n0, n, law, law, _drift(0.0))
        for name, law in laws.items()
        for n0, n in SIZES[:2]
    ]


def _correlated() -> list[Null]:
    test = "drift, no tolerance, design effect estimated"
    found = [
        Null(test, name, 2000, 200, law, law, _windowed(sessions))
        for name, law, sessions in [
            ("iid, no zeros", hurdle(0.0, scale=COARSE), INDEPENDENT),
            ("sessions of 5, no zeros", hurdle(0.0, scale=COARSE), Sessions(5, 0.5)),
            ("sessions of 5, 90% zeros", hurdle(0.9, scale=COARSE), Sessions(5, 0.5)),
            ("sessions of 20, 50% zeros, graded", hurdle(0.5, graded=True, scale=COARSE), Sessions(20, 0.5)),
        ]
    ]
    noon = day()[0]
    return [*found, Null(test, "diurnal, any hour against a whole day", 2400, 200, noon, noon, _any_hour)]


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
        for zeros in (0.9, 0.97, 0.99)
        for n0, n in SIZES[:2]
    ]
    for agree in (0.9, 0.99):
        law, name = hurdle(agree), f"iid, {1 - agree:.0%} of requests differ"
        found += [Null("paired (McNemar)", name, n, n, law, law, _paired) for n in (200, 3000)]
    for values in ("gamma", "heavy"):
        law = hurdle(0.5, values)
        found += [Null("explosion", f"iid, {values}", n0, n, law, law, _explosion) for n0, n in SIZES[:2]]
    return found


def nulls() -> list[Null]:
    """Every case of the table, in its order."""
    return [*_no_effect(), *_correlated(), *_tolerated(), *_others()]
