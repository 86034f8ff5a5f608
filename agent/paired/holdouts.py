"""Measures accuracy on the labelled holdout, once for every deployment and again when a file changes.

The detector counts a result for a limited time only, so it is sent again while its files are there, and withdrawn when
they are not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agent import wire
from agent.budget.duty import Duty, DutyLimits
from agent.budget.shares import ModelKey
from agent.clock import unix_ms
from agent.delivery.sender import Sender
from agent.metrics import AgentMetrics
from agent.paired.baselines import Baseline, Stamp, holdout_of, reference_of
from agent.paired.errors import PairedError
from agent.paired.holdout import HoldoutError
from agent.paired.holdout_run import HoldoutRuns, NotNow
from agent.paired.settings import PairedSettings
from agent.serving.models import Served, be_nice

log = structlog.get_logger()

_POLL_SECONDS = 0.25
_RETRY_MS = 60_000
"""Before a holdout that memory had no room for is tried again."""

_State = tuple[str, tuple[Path, Stamp] | None, Baseline | None]
"""What a version's result depends on: its digest, the holdout's file and the reference model's."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A result that was sent, of which model file, and when it was sent last."""

    digest: str
    comparison: wire.Comparison
    at_ms: int


class Holdouts:
    """`offer` is called by the loop that watches the repository; all work is in `run`, a thread of its own."""

    def __init__(
        self,
        settings: PairedSettings,
        sender: Sender,
        metrics: AgentMetrics,
        stop: threading.Event,
        clock_ms: Callable[[], int] = unix_ms,
        duty: Duty | None = None,
    ) -> None:
        """``stop`` is looked at between batches; a holdout that was interrupted is not sent.

        ``duty`` is the agent's; where there is none, holdouts never rest.
        """
        self._settings = settings
        self._sender = sender
        self._metrics = metrics
        self._stop = stop
        self._clock_ms = clock_ms
        self._runs = HoldoutRuns(settings, metrics, duty or Duty(DutyLimits(1.0, kept=1.0)), clock_ms, self._gone)
        self._done: dict[ModelKey, _State] = {}
        self._told: dict[ModelKey, _Told] = {}
        self._retry_ms: dict[ModelKey, int] = {}
        self._offered: Mapping[ModelKey, Served] = {}
        self._changed = threading.Event()

    def offer(self, served: Mapping[ModelKey, Served]) -> None:
        """These versions are served now."""
        self._offered = served
        self._changed.set()

    def run(self, stop: threading.Event) -> None:
        """Looks at what is served, and at the files beside it, after each look at the repository, until stopped."""
        be_nice(self._settings.nice)
        while not stop.is_set():
            if self._changed.wait(_POLL_SECONDS):
                self._changed.clear()
                self.refresh(self._offered)

    def refresh(self, served: Mapping[ModelKey, Served]) -> None:
        """Runs the holdouts of versions that are new or whose files have changed. Never raises."""
        self._offered = served
        for key in self._done.keys() - served.keys():
            del self._done[key]
            self._forget(*key)
            self._told.pop(key, None)
        for key in self._retry_ms.keys() - served.keys():
            del self._retry_ms[key]
        for (model, version), item in served.items():
            if self._stop.is_set():
                return
            try:
                self._refresh(item)
            except Exception:  # whatever is wrong with a holdout may not keep the others from being run
                log.exception("holdout.failed", model=model, version=version)
                self._metrics.paired_failed_total.labels(model, "holdout", "internal").inc()

    def _gone(self, served: Served) -> bool:
        """Whether the version was replaced or removed, or the agent stops: its holdout is of no interest any more."""
        return self._stop.is_set() or self._offered.get(served.entry.key) is not served

    def _refresh(self, served: Served) -> None:
        key = served.entry.key
        found = holdout_of(served.entry)
        reference = reference_of(served.entry, self._settings.compare_previous) if found is not None else None
        state: _State = (served.digest, found, reference)
        before, told = self._done.get(key), self._told.get(key)
        if before == state:
            if told is not None and self._clock_ms() - told.at_ms >= 1000 * self._settings.holdout_repeat_seconds:
                self._tell(served, _now(told.comparison, self._clock_ms()))
            return
        if self._clock_ms() < self._retry_ms.get(key, 0):
            return
        try:
            comparison = None if found is None else self._measured(served, found[0], reference)
        except NotNow:
            return
        self._done[key] = state  # also where it fails: it is tried again when a file changes
        self._told.pop(key, None)
        self._retry_ms.pop(key, None)
        if before is not None:
            self._forget(*key)
        if comparison is not None:
            self._tell(served, comparison)
            self._export(served, comparison)
        elif told is not None and told.digest == served.digest:
            self._withdraw(served, told.comparison)

    def _tell(self, served: Served, comparison: wire.Comparison) -> None:
        model, version, digest = served.entry.model, served.entry.version, served.digest
        self._sender.comparison(model, version, digest, comparison)
        self._told[served.entry.key] = _Told(digest, comparison, self._clock_ms())

    def _withdraw(self, served: Served, comparison: wire.Comparison) -> None:
        """Sends a run of no requests, which stands for the former one: its files are gone, or cannot be used now."""
        if self._stop.is_set():
            return
        model, version = served.entry.model, served.entry.version
        nothing = wire.probes_only(replace(_now(comparison, self._clock_ms()), probes=()))
        self._sender.comparison(model, version, served.digest, nothing)
        log.info("holdout.withdrawn", model=model, version=version)

    def _measured(self, served: Served, path: Path, reference: Baseline | None) -> wire.Comparison | None:
        """The comparison; None where the files cannot be used, which is logged. Raises NotNow."""
        entry = served.entry
        try:
            return self._runs.measure(served, path, reference)
        except (HoldoutError, PairedError) as error:
            reason = error.reason if isinstance(error, PairedError) else "holdout_unusable"
            self._metrics.paired_failed_total.labels(entry.model, "holdout", reason).inc()
            log.error("holdout.failed", model=entry.model, version=entry.version, reason=str(error))
            if reason == "no_memory":
                self._retry_ms[entry.key] = self._clock_ms() + _RETRY_MS
                raise NotNow from error
            return None

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
