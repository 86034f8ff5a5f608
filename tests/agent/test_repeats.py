"""Repeated log lines are limited by kind, and those left out are counted."""

from __future__ import annotations

from structlog.testing import capture_logs

from agent.repeats import Repeats
from tests.agent.capture.fakes import Clock


def test_one_line_of_a_kind_per_interval_and_the_next_counts_the_rest() -> None:
    clock = Clock()
    repeats = Repeats(10, clock)
    with capture_logs() as logs:
        for clock.now in (0.0, 1.0, 9.0, 10.0):
            repeats.warning("request.rejected", ("digits", "shape"), message=f"at {clock.now}")
        repeats.warning("request.rejected", ("digits", "bad_json"), message="another kind")
    assert [(one["message"], one["suppressed"]) for one in logs] == [("at 0.0", 0), ("at 10.0", 2), ("another kind", 0)]
