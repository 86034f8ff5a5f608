"""One run of a labelled holdout: within the memory and the time that the agent has for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from agent import wire
from agent.budget.duty import Duty
from agent.budget.memory import NoRoom
from agent.budget.pace import Pace
from agent.metrics import AgentMetrics
from agent.paired.baselines import HOLDOUT_FILE, Baseline
from agent.paired.errors import PairedError
from agent.paired.holdout import Holdout, check_classes, read_holdout, unpacked_size
from agent.paired.pairing import Pairing
from agent.paired.settings import PairedSettings
from agent.paired.template import Template
from agent.serving.models import Served

log = structlog.get_logger()


class NotNow(Exception):
    """The holdout was interrupted, or has no room: it is run later, if it still is of interest then."""


class HoldoutRuns:
    """Runs holdouts, one at a time."""

    def __init__(
        self,
        settings: PairedSettings,
        metrics: AgentMetrics,
        duty: Duty,
        clock_ms: Callable[[], int],
        gone: Callable[[Served], bool],
    ) -> None:
        """``gone`` is asked between batches whether a version's holdout is of interest no more."""
        self._settings = settings
        self._metrics = metrics
        self._duty = duty
        self._clock_ms = clock_ms
        self._gone = gone

    def measure(self, served: Served, path: Path, reference: Baseline | None) -> wire.Comparison:
        """Runs the holdout; raises HoldoutError or PairedError where its files cannot be used now, or NotNow."""
        memory = self._settings.device.memory
        if memory is None:
            return self._compared(served, path, reference)
        try:
            # Twice: as they are in the file, and as the model takes them.
            lease = memory.ram.lease("holdout", 2 * min(unpacked_size(path), self._settings.holdout_bytes))
        except NoRoom as error:
            raise PairedError("no_memory", str(error)) from error
        try:
            return self._compared(served, path, reference)
        finally:
            lease.release()

    def _compared(self, served: Served, path: Path, reference: Baseline | None) -> wire.Comparison:
        entry = served.entry
        holdout = read_holdout(
            path, served.metadata.inputs, served.instrumented.batch_axes, self._settings.holdout_bytes
        )
        template = Template("holdout", HOLDOUT_FILE, holdout.digest, served.engine.provider)
        beside = "" if reference is None else reference.label
        try:
            named = replace(template, reference=beside)
            pairing = Pairing(served, reference, self._settings, named, owner="holdout")
        except PairedError as error:
            if reference is None:
                raise
            # The served model's accuracy is worth having without its reference.
            self._metrics.paired_failed_total.labels(entry.model, "holdout", error.reason).inc()
            log.error("holdout.reference_unusable", model=entry.model, version=entry.version, reason=str(error))
            pairing = Pairing(served, None, self._settings, template, owner="holdout")
        begin = self._clock_ms()
        with Pace(self._duty, "holdout", entry.key, lambda: self._gone(served)) as pace:
            total = self._run(pairing, path, holdout, (begin, begin + 1), pace)
        return replace(total, end_ms=max(self._clock_ms(), begin + 1))

    def _run(
        self, pairing: Pairing, path: Path, holdout: Holdout, span: tuple[int, int], pace: Pace
    ) -> wire.Comparison:
        total: wire.Comparison | None = None
        step = self._settings.max_batch
        group = 0
        while True:
            for start in range(0, len(holdout.labels), step):
                if pace.step():
                    raise NotNow
                inputs = holdout.rows(start, start + step)
                outcome = pairing.run(inputs, span, labels=holdout.labels[start : start + step])
                if start == 0 and group == 0:
                    check_classes(path, holdout.labels, outcome.classes)
                part = outcome.comparison if group == 0 else _inner_probes(outcome.comparison, pairing)
                total = part if total is None else wire.merge(total, part)
            group += 1
            if total is not None and group >= len(pairing.groups):
                return total
            pairing.advance()


def _inner_probes(part: wire.Comparison, pairing: Pairing) -> wire.Comparison:
    """Without what every group of probes repeats: the comparison's own counts and the outputs."""
    inner = tuple(item for item in part.probes if item.probe.tensor not in pairing.outputs)
    return replace(wire.probes_only(part), probes=inner)
