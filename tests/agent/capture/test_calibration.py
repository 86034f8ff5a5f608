"""Groups by timing, on a clock that the sessions themselves move."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.capture.calibration import Calibration, calibrate
from agent.capture.groups import UNTIMED_EXCESS
from agent.capture.settings import CaptureSettings
from agent.capture.timing import Stopped, paired
from agent.instrument import Instrumented, instrument
from agent.replay import Device, Port, Replayer
from tests.agent.capture.fakes import Clock
from tests.agent.models import Builder, resnet50, small_cnn

DEVICE = Device(1, 1 << 30)


class Timed:
    """Sessions that take ``plain`` seconds, plus what ``cost`` says for each probed element."""

    def __init__(self, plain: float, per_element: float, fixed: float = 0.0, scatter: Sequence[float] = (0.0,)) -> None:
        """``scatter`` is added to the runs of groups, as shares of their time, in turn."""
        self.clock = Clock()
        self.built: list[int] = []
        self.batches: list[int] = []
        self._plain = plain
        self._per_element = per_element
        self._fixed = fixed
        self._scatter = scatter

    def build(self, part: Instrumented) -> _Session:
        self.built.append(len(part.probes))
        elements = sum(part.elements[probe.name] or 0 for probe in part.probes if probe.kind == "activation")
        extra = elements * self._per_element + (self._fixed if part.probes else 0.0)
        of_a_group = 0 < len(part.probes) < 51
        return _Session(self, self._plain + extra, self._scatter if of_a_group else (0.0,))


class _Session:
    batch_size = None
    inputs = (Port("image", "FP32", (-1, 3, 32, 32)),)

    def __init__(self, of: Timed, seconds: float, scatter: Sequence[float]) -> None:
        self._of = of
        self._seconds = seconds
        self._scatter = itertools.cycle(scatter)

    def run(self, inputs: dict[str, Any]) -> object:
        rows = len(inputs["image"])
        self._of.batches.append(rows)
        self._of.clock.now += self._seconds * (1 + next(self._scatter)) * rows / 8
        return {}


@pytest.fixture(scope="module")
def observed() -> Instrumented:
    return instrument(resnet50(size=32))


def elements(observed: Instrumented) -> int:
    return sum(observed.elements[probe.name] or 0 for probe in observed.probes if probe.kind == "activation")


def run(observed: Instrumented, timed: Timed, budget: float | None, seconds: float = 10.0) -> Calibration:
    settings = CaptureSettings(DEVICE, overhead_budget=budget, calibration_seconds=seconds)
    return calibrate(observed, settings, timed.build, lambda: False, timed.clock)


def test_within_the_budget_there_is_one_group(observed: Instrumented) -> None:
    timed = Timed(0.1, 0.08 * 0.1 / elements(observed))
    found = run(observed, timed, 0.10)
    assert (len(found.groups), found.within, found.timed) == (1, True, True)
    assert found.ratio == pytest.approx(1.08, abs=0.001)


def test_over_the_budget_groups_share_the_excess_and_are_timed(observed: Instrumented) -> None:
    timed = Timed(0.05, 0.35 * 0.05 / elements(observed))
    found = run(observed, timed, 0.10)
    assert (len(found.groups), found.within, found.timed) == (4, True, True)
    assert found.ratio == pytest.approx(1.35 / 4 + 0.75, abs=0.01)
    assert timed.built == [0, 51, *[len(group) for group in found.groups]]


def test_more_groups_where_the_first_number_does_not_do(observed: Instrumented) -> None:
    """A cost that does not shrink with the elements: two groups of 0.12 each, not of 0.10."""
    found = run(observed, Timed(0.01, 0.16 * 0.01 / elements(observed), fixed=0.04 * 0.01), 0.10)
    assert len(found.groups) == 3
    assert found.within and found.timed


def test_a_group_that_is_over_the_budget_by_less_than_its_scatter_adds_no_group(observed: Instrumented) -> None:
    timed = Timed(0.05, 0.20 * 0.05 / elements(observed), scatter=[0.04, -0.03, 0.005])
    found = run(observed, timed, 0.10)
    assert (len(found.groups), found.within) == (2, True)
    assert found.ratio is not None and 1.10 < found.ratio < 1.12, "what was measured is what is said"


def test_what_cannot_be_met_is_said(observed: Instrumented) -> None:
    found = run(observed, Timed(0.01, 0.0, fixed=0.005), 0.10, seconds=1000)
    assert len(found.groups) == 49, "one activation each"
    assert not found.within
    assert found.ratio == pytest.approx(1.5, abs=0.01)


def test_too_little_to_matter_is_not_parted(observed: Instrumented) -> None:
    found = run(observed, Timed(0.0001, 0.0, fixed=0.0004), 0.10)
    assert (len(found.groups), found.within) == (1, True)
    assert found.ratio == pytest.approx(5.0)


def test_a_slow_model_is_timed_in_smaller_batches_and_the_rest_is_worked_out(observed: Instrumented) -> None:
    timed = Timed(4.0, 0.5 * 4.0 / elements(observed))
    found = run(observed, timed, 0.10, seconds=10.0)
    assert min(timed.batches) == 1
    assert timed.clock.now < 30
    assert (len(found.groups), found.timed) == (5, False)
    assert found.ratio == pytest.approx(1.10, abs=0.01)


def test_without_a_budget_nothing_is_timed(observed: Instrumented) -> None:
    timed = Timed(1, 1)
    assert run(observed, timed, None) == Calibration(
        (frozenset(probe.name for probe in observed.probes),), None, True, False
    )
    assert timed.built == []


def test_stop_ends_it_between_runs(observed: Instrumented) -> None:
    timed = Timed(0.1, 0.0)
    settings = CaptureSettings(DEVICE, overhead_budget=0.1)
    with pytest.raises(Stopped):
        calibrate(observed, settings, timed.build, lambda: len(timed.batches) >= 5, timed.clock)
    assert len(timed.batches) == 5


def test_inputs_that_cannot_be_made_up_leave_an_estimate_and_a_reason() -> None:
    """Requests over one position only: the convolution refuses images of 1x1."""
    b = Builder()
    x = b.node("Relu", [b.node("Conv", ["x", b.weight("w", 4, 3, 5, 5)], "conv")], "relu")
    observed = instrument(b.model({"x": ["N", 3, "H", "W"]}, {b.node("Relu", [x], "again"): 4}))
    settings = CaptureSettings(DEVICE, overhead_budget=UNTIMED_EXCESS / 2)
    with capture_logs() as logs:
        found = calibrate(observed, settings, lambda part: Replayer.on(DEVICE, part), lambda: False)
    assert (len(found.groups), found.ratio, found.within, found.timed) == (2, None, True, False)
    assert [entry["event"] for entry in logs] == ["calibration.impossible"]
    assert "cannot run the batch" in logs[0]["reason"]


def test_real_sessions_are_timed() -> None:
    observed = instrument(small_cnn())
    settings = CaptureSettings(DEVICE, overhead_budget=0.01, calibration_seconds=1.0)
    found = calibrate(observed, settings, lambda part: Replayer.on(DEVICE, part), lambda: False)
    assert found.timed and found.within
    assert found.ratio is not None and found.ratio > 1


def test_pairs_alternate_and_their_median_and_spread_are_of_ratios() -> None:
    clock, order = Clock(), []
    seconds = iter([1.0, 2.0, 1.0, 2.0, 6.0, 2.0, 1.0, 3.0])  # plain, other; then plain other, other plain, plain other

    def one(name: str) -> None:
        order.append(name)
        clock.now += next(seconds)

    ratio = paired(lambda: one("plain"), lambda: one("other"), 0, lambda: False, clock)
    assert "".join(name[0] for name in order) == "po" + "po" + "op" + "po"
    assert (ratio.median, ratio.pairs, ratio.plain_seconds) == (3.0, 3, 1.0)
    assert ratio.spread == pytest.approx(0.5)
