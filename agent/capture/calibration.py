"""Finds out, on the device and before a model is served, into how many groups its probes must be parted.

Two sessions at most are held at a time, and none is left when it is done. The first half of the time goes to all
probes together, the second to the groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Protocol

import structlog
from numpy.typing import NDArray

from agent.capture import groups
from agent.capture.groups import ProbeGroup
from agent.capture.settings import CaptureSettings
from agent.capture.synthetic import synthetic
from agent.capture.timing import Clock, Ratio, Stopped, paired
from agent.instrument import Instrumented
from agent.replay import Port, ReplayError

log = structlog.get_logger()

_BATCH = 8
_RUNS = 64
"""Plain runs that should fit into the time: enough for a few pairs of each session."""
_RUNS_OF_A_PAIRING = 8
_NEGLIGIBLE_SECONDS = 0.0005
"""What probes may add to a batch whatever its share: parting them costs more in statistics than it saves."""


class Session(Protocol):
    """What is timed: a Replayer, or a test's fake."""

    @property
    def inputs(self) -> tuple[Port, ...]: ...

    @property
    def batch_size(self) -> int | None: ...

    def run(self, inputs: dict[str, NDArray[Any]]) -> object: ...


@dataclass(frozen=True, slots=True)
class Calibration:
    """The groups to run in turn, and what is known about their cost."""

    groups: tuple[ProbeGroup, ...]
    ratio: float | None
    """An instrumented run over a plain one: the mean over the groups. None where nothing could be timed."""
    within: bool
    """Whether the ratio keeps the budget as far as the timing can tell, or is too small an amount to matter."""
    timed: bool
    """Whether every group was timed; else the ratio is worked out from what was, by the elements in a group."""


def calibrate(
    observed: Instrumented,
    settings: CaptureSettings,
    build: Callable[[Instrumented], Session],
    stopped: Callable[[], bool],
    clock: Clock = time.perf_counter,
    *,
    logger: Any = log,
) -> Calibration:
    """The fewest groups that keep ``settings.overhead_budget``, timed where that can be done, else estimated.

    ``logger`` is bound to the model that its lines speak of. Raises Stopped once ``stopped()``, at the latest after the
    run or the loading of a session that is under way.
    """
    if settings.overhead_budget is None:
        return Calibration(groups.partition(observed.probes, observed.elements, 1), None, True, False)
    stand = _Stand(observed, settings, build, stopped, clock, logger)
    try:
        return stand.find(settings.overhead_budget)
    except (ReplayError, ValueError) as error:
        logger.warning("calibration.impossible", reason=str(error), assumed_ratio=1 + groups.UNTIMED_EXCESS)
        return replace(stand.estimate(groups.UNTIMED_EXCESS, settings.overhead_budget), ratio=None)


class _Stand:
    """A plain session, and those that are timed against it."""

    def __init__(
        self,
        observed: Instrumented,
        settings: CaptureSettings,
        build: Callable[[Instrumented], Session],
        stopped: Callable[[], bool],
        clock: Clock,
        logger: Any,
    ) -> None:
        self._log = logger
        self._observed = observed
        self._settings = settings
        self._build = build
        self._stopped = stopped
        self._clock = clock
        self._deadline = clock() + settings.calibration_seconds
        self._most = max(1, sum(probe.kind == "activation" for probe in observed.probes))

    def find(self, budget: float) -> Calibration:
        plain = self._session(())
        inputs = self._inputs(plain)
        whole = self._ratio(plain, frozenset(probe.name for probe in self._observed.probes), inputs, parts=2)
        self._log.info(
            "calibration.all_probes",
            ratio=round(whole.median, 3),
            spread=round(whole.spread, 3),
            pairs=whole.pairs,
            plain_ms=round(whole.plain_seconds * 1000, 2),
        )
        if whole.excess <= budget or whole.excess * whole.plain_seconds <= _NEGLIGIBLE_SECONDS:
            return Calibration(self._partition(1), whole.median, True, True)
        count = groups.first_count(whole.excess, budget, self._most)
        while True:
            parted = self._partition(count)
            ratios = self._each(plain, parted, inputs, whole.plain_seconds * _RUNS_OF_A_PAIRING)
            if not ratios:
                return self.estimate(whole.excess, budget, count)
            excess = max(0.0, fmean(ratio.median for ratio in ratios) - 1.0)
            error = sum(ratio.error**2 for ratio in ratios) ** 0.5 / len(ratios)
            self._log.info(
                "calibration.groups",
                groups=count,
                ratio=round(1 + excess, 3),
                error=round(error, 3),
                timed=len(ratios),
            )
            # The first number comes from the longest timing; a few pairs that scatter do not overrule it.
            surely = max(0.0, excess - error)
            more = groups.next_count(count, surely, budget, self._most)
            if more is None:
                return Calibration(parted, 1 + excess, surely <= budget, len(ratios) == count)
            if self._clock() >= self._deadline:
                return self.estimate(surely * count, budget, more)
            count = more

    def estimate(self, excess: float, budget: float, count: int | None = None) -> Calibration:
        """Groups that should do if a share ``excess`` is added by all probes together, each by its elements."""
        count = count or groups.first_count(excess, budget, self._most)
        each = excess / count
        return Calibration(self._partition(count), 1 + each, each <= budget + 1e-9, False)

    def _each(
        self, plain: Session, parted: tuple[ProbeGroup, ...], inputs: dict[str, NDArray[Any]], least_seconds: float
    ) -> list[Ratio]:
        """The ratios of those groups for which there is time, each taking ``least_seconds`` at least."""
        ratios: list[Ratio] = []
        for place, names in enumerate(parted):
            if self._clock() + least_seconds > self._deadline:
                break
            ratios.append(self._ratio(plain, names, inputs, parts=len(parted) - place))
        return ratios

    def _ratio(self, plain: Session, names: ProbeGroup, inputs: dict[str, NDArray[Any]], parts: int) -> Ratio:
        session = self._session(names)
        seconds = max(0.0, self._deadline - self._clock()) / parts
        return paired(lambda: plain.run(inputs), lambda: session.run(inputs), seconds, self._stopped, self._clock)

    def _session(self, names: Collection[str]) -> Session:
        if self._stopped():
            raise Stopped
        return self._build(self._observed.subset(names))

    def _inputs(self, plain: Session) -> dict[str, NDArray[Any]]:
        """A batch that the model runs on, of a usual size unless that is too slow for the time there is.

        Raises ReplayError or ValueError where none can be made up.
        """
        batch = plain.batch_size or min(self._settings.max_batch, _BATCH)
        fill, inputs = self._accepted(plain, batch)
        begin = self._clock()
        plain.run(inputs)
        runs = self._settings.calibration_seconds / max(self._clock() - begin, 1e-9)
        if plain.batch_size is None and runs < _RUNS:
            batch = max(1, int(batch * runs / _RUNS))
            inputs = self._made(plain, batch, fill)
        return inputs

    def _accepted(self, plain: Session, batch: int) -> tuple[int, dict[str, NDArray[Any]]]:
        """The integers that the model takes, zeros if it does, and a batch of them."""
        inputs = self._made(plain, batch, 0)
        try:
            plain.run(inputs)
        except ReplayError:
            inputs = self._made(plain, batch, 1)
            plain.run(inputs)
            return 1, inputs
        return 0, inputs

    def _made(self, plain: Session, batch: int, fill: int) -> dict[str, NDArray[Any]]:
        axes, extent = self._observed.batch_axes, self._settings.calibration_extent
        return synthetic(plain.inputs, axes, batch, extent, fill)

    def _partition(self, count: int) -> tuple[ProbeGroup, ...]:
        return groups.partition(self._observed.probes, self._observed.elements, count)
