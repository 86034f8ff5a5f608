"""Measures accuracy on the labelled holdout, once for every deployment and again when a file changes.

The detector counts a result for a limited time only, so it is sent again while its files are there, and withdrawn when
they are not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agent import wire
from agent.delivery.sender import Sender
from agent.metrics import AgentMetrics
from agent.paired.baselines import HOLDOUT_FILE, Baseline, Stamp, holdout_of, reference_of
from agent.paired.errors import PairedError
from agent.paired.holdout import Holdout, HoldoutError, check_classes, read_holdout
from agent.paired.pairing import Pairing, Template
from agent.paired.settings import PairedSettings
from agent.serving.models import Served

log = structlog.get_logger()

_State = tuple[str, str, tuple[Path, Stamp] | None, Baseline | None]
"""What a holdout's result depends on: version, digest, the holdout's file and the reference model's."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A result that was sent, of which model file, and when it was sent last."""

    version: str
    digest: str
    comparison: wire.Comparison
    at_ms: int


class Holdouts:
    """Runs in the thread that watches the repository; `refresh` is its only entry."""

    def __init__(
        self,
        settings: PairedSettings,
        sender: Sender,
        metrics: AgentMetrics,
        stop: threading.Event,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """``stop`` is looked at between batches; a holdout that was interrupted is not sent."""
        self._settings = settings
        self._sender = sender
        self._metrics = metrics
        self._stop = stop
        self._clock_ms = clock_ms
        self._done: dict[str, _State] = {}
        self._told: dict[str, _Told] = {}

    def refresh(self, served: Mapping[str, Served]) -> None:
        """Runs the holdouts of models that are new or whose files have changed. Never raises."""
        for model in self._done.keys() - served.keys():
            self._forget(model, self._done.pop(model)[0])
            self._told.pop(model, None)
        for model, item in list(served.items()):
            if self._stop.is_set():
                return
            try:
                self._refresh(model, item)
            except Exception:  # whatever is wrong with a holdout may not keep the next version from being loaded
                log.exception("holdout.failed", model=model, version=item.entry.version)
                self._metrics.paired_failed_total.labels(model, "holdout", "internal").inc()

    def _refresh(self, model: str, served: Served) -> None:
        entry = served.entry
        found = holdout_of(entry)
        reference = reference_of(entry, self._settings.compare_previous) if found is not None else None
        state: _State = (entry.version, served.digest, found, reference)
        before, told = self._done.get(model), self._told.get(model)
        if before == state:
            if told is not None and self._clock_ms() - told.at_ms >= 1000 * self._settings.holdout_repeat_seconds:
                self._tell(served, _now(told.comparison, self._clock_ms()))
            return
        self._done[model] = state  # also where it fails: it is tried again when a file changes
        self._told.pop(model, None)
        if before is not None:
            self._forget(model, before[0])
        comparison = None if found is None else self._measured(served, found[0], reference)
        if comparison is not None:
            self._tell(served, comparison)
            self._export(served, comparison)
        elif told is not None and (told.version, told.digest) == (entry.version, served.digest):
            self._withdraw(served, told.comparison)

    def _tell(self, served: Served, comparison: wire.Comparison) -> None:
        model, version, digest = served.entry.model, served.entry.version, served.digest
        self._sender.comparison(model, version, digest, comparison)
        self._told[model] = _Told(version, digest, comparison, self._clock_ms())

    def _withdraw(self, served: Served, comparison: wire.Comparison) -> None:
        """Sends a run of no requests, which stands for the former one: its files are gone, or cannot be used now."""
        if self._stop.is_set():
            return
        model, version = served.entry.model, served.entry.version
        nothing = wire.probes_only(replace(_now(comparison, self._clock_ms()), probes=()))
        self._sender.comparison(model, version, served.digest, nothing)
        log.info("holdout.withdrawn", model=model, version=version)

    def _measured(self, served: Served, path: Path, reference: Baseline | None) -> wire.Comparison | None:
        """The comparison; None where the files cannot be used, which is logged, or the agent is stopping."""
        try:
            return self._measure(served, path, reference)
        except (HoldoutError, PairedError) as error:
            model, reason = served.entry.model, error.reason if isinstance(error, PairedError) else "holdout_unusable"
            self._metrics.paired_failed_total.labels(model, "holdout", reason).inc()
            log.error("holdout.failed", model=model, version=served.entry.version, reason=str(error))
            return None

    def _measure(self, served: Served, path: Path, reference: Baseline | None) -> wire.Comparison | None:
        """The comparison; None where the agent is stopping."""
        entry = served.entry
        holdout = read_holdout(
            path, served.metadata.inputs, served.instrumented.batch_axes, self._settings.holdout_bytes
        )
        template = Template("holdout", HOLDOUT_FILE, holdout.digest, served.engine.provider)
        beside = "" if reference is None else reference.label
        try:
            pairing = Pairing(served, reference, self._settings, replace(template, reference=beside))
        except PairedError as error:
            if reference is None:
                raise
            # The served model's accuracy is worth having without its reference.
            self._metrics.paired_failed_total.labels(entry.model, "holdout", error.reason).inc()
            log.error("holdout.reference_unusable", model=entry.model, version=entry.version, reason=str(error))
            pairing = Pairing(served, None, self._settings, template)
        begin = self._clock_ms()
        total = self._run(pairing, path, holdout, (begin, begin + 1))
        return None if total is None else replace(total, end_ms=max(self._clock_ms(), begin + 1))

    def _run(self, pairing: Pairing, path: Path, holdout: Holdout, span: tuple[int, int]) -> wire.Comparison | None:
        total: wire.Comparison | None = None
        step = self._settings.max_batch
        group = 0
        while True:
            for start in range(0, len(holdout.labels), step):
                if self._stop.is_set():
                    return None
                inputs = holdout.rows(start, start + step)
                outcome = pairing.run(inputs, span, labels=holdout.labels[start : start + step])
                if start == 0 and group == 0:
                    check_classes(path, holdout.labels, outcome.classes)
                part = outcome.comparison if group == 0 else _inner_probes(outcome.comparison, pairing)
                total = part if total is None else wire.merge(total, part)
            group += 1
            if group >= len(pairing.groups):
                return total
            pairing.advance()

    def _export(self, served: Served, result: wire.Comparison) -> None:
        model, version = served.entry.model, served.entry.version
        accuracy = result.served_correct / result.accuracy_n
        self._metrics.validation_accuracy.labels(model, version).set(accuracy)
        delta = None
        if result.baseline_n:
            delta = accuracy - result.baseline_correct / result.baseline_n
            self._metrics.quantized_accuracy_delta.labels(model, version).set(delta)
        log.info(
            "holdout.measured",
            model=model,
            version=version,
            requests=result.accuracy_n,
            accuracy=round(accuracy, 6),
            delta=None if delta is None else round(delta, 6),
        )

    def _forget(self, model: str, version: str) -> None:
        for gauge in (self._metrics.validation_accuracy, self._metrics.quantized_accuracy_delta):
            try:
                gauge.remove(model, version)
            except KeyError:
                continue  # it was never measured


def _now(comparison: wire.Comparison, at_ms: int) -> wire.Comparison:
    """The same result, said at another time: rows of the detector are told apart by their times."""
    return replace(comparison, start_ms=at_ms, end_ms=at_ms + 1)


def _inner_probes(part: wire.Comparison, pairing: Pairing) -> wire.Comparison:
    """Without what every group of probes repeats: the comparison's own counts and the outputs."""
    inner = tuple(item for item in part.probes if item.probe.tensor not in pairing.outputs)
    return replace(wire.probes_only(part), probes=inner)
