"""The paired loop: takes a trickle of what is replayed, runs it on served model and baselines, sends what differs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from agent import wire
from agent.budget.duty import Duty, DutyLimits
from agent.budget.shares import ModelKey
from agent.clock import unix_ms
from agent.delivery.sender import Sender
from agent.delivery.versions import Version
from agent.intake.tensors import OipError
from agent.metrics import AgentMetrics
from agent.paired.answers import answers_of
from agent.paired.baselines import Baseline, cpu_of, reference_of
from agent.paired.errors import PairedError
from agent.paired.intake import PairedIntake, Task
from agent.paired.pairings import Pairings
from agent.paired.settings import PairedSettings
from agent.paired.windows import ComparisonWindows, ServedVersion
from agent.replay import CPU
from agent.serving.models import Served, be_nice
from agent.wire import BaselineKind

log = structlog.get_logger()
_POLL_SECONDS = 0.25
_REST_SECONDS = 5.0
"""Of a long rest, after which windows that are due are sent, and what need not wait any longer is dropped."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What a model's requests are compared with now."""

    served: Served
    baselines: tuple[Baseline, ...]


class Paired:
    """Paired replay of one agent. `refresh` is called by the loop that watches the repository; all work is in `run`."""

    def __init__(
        self,
        settings: PairedSettings,
        sample_rate: float,
        windows: ComparisonWindows,
        sender: Sender,
        metrics: AgentMetrics,
        clock_ms: Callable[[], int] = unix_ms,
        monotonic: Callable[[], float] = time.monotonic,
        duty: Duty | None = None,
    ) -> None:
        """``sample_rate`` is the agent's; the other arguments are as for `agent.serving.worker.Worker`."""
        self._settings = settings
        self._windows = windows
        self._sender = sender
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._duty = duty or Duty(DutyLimits(settings.duty_cycle), monotonic)
        self._targets: dict[ModelKey, _Target] = {}
        self._pairings = Pairings(settings)
        self._left_out: dict[tuple[ModelKey, BaselineKind], dict[str, str]] = {}
        self.intake = PairedIntake(settings, sample_rate, metrics, self._has_baseline, monotonic)
        """What intake and replay talk to."""

    def refresh(self, served: Mapping[ModelKey, Served]) -> None:
        """Looks for the baselines of the versions that are served now. Called after each look at the repository."""
        targets = {}
        for key, item in served.items():
            baselines = []
            if self._settings.rate > 0:
                try:
                    reference = reference_of(item.entry, self._settings.compare_previous)
                except OSError as error:  # the version's folder is being removed
                    log.warning("paired.repository_unreadable", model=key[0], version=key[1], reason=str(error))
                    reference = None
                baselines = [reference] if reference is not None else []
                if item.engine.provider != CPU:
                    baselines.append(cpu_of(item.entry))
            targets[key] = _Target(item, tuple(baselines))
        self._targets = targets

    def run(self, stop: threading.Event) -> None:
        """Compares until stopped, within its duty cycle, then hands over the windows that are still open."""
        be_nice(self._settings.nice)
        while not stop.is_set():
            if (seconds := self._duty.delay("paired")) > 0:
                self._rest(seconds, stop)
                continue
            task = self.intake.take(_POLL_SECONDS)
            if task is not None:
                self._account(task)
            self._close_windows()
        self.intake.close()
        self._send(self._windows.drain())
        self._sender.withhold_comparisons("stopping", lambda version: True)

    def _account(self, task: Task) -> None:
        """Compares, and pays for the time that it takes."""
        key, begin = task.served.entry.key, time.monotonic()
        try:
            self._process(task)
        finally:
            seconds = time.monotonic() - begin
            self._duty.charge("paired", key, seconds)
            self.intake.done(key, seconds)

    def _rest(self, seconds: float, stop: threading.Event) -> None:
        """Does no comparing for so long, but what has to be done in time; returns early when stopped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not stop.wait(min(left, _REST_SECONDS)):
            self.intake.expire()
            self._close_windows()

    def _close_windows(self) -> None:
        self._unload_gone()
        self._send(self._windows.close(self._clock_ms()))
        self._sender.withhold_comparisons("version_gone", self._is_gone)

    def _is_gone(self, version: Version) -> bool:
        """Whether nothing of a model version can be compared any more, and none waits in an open window."""
        target = self._targets.get(version[:2])
        serves = target is not None and target.served.digest == version[2]
        return not serves and not self._windows.holds(*version)

    def _has_baseline(self, served: Served) -> bool:
        target = self._targets.get(served.entry.key)
        return target is not None and bool(target.baselines)

    def _process(self, task: Task) -> None:
        target = self._targets.get(task.served.entry.key)
        if target is None or target.served is not task.served:
            self.intake.drop("model_gone")  # replaced while the request waited
            return
        if task.response is not None:
            self._compare(task, "served_response", None)
        else:
            for baseline in target.baselines:
                self._compare(task, baseline.kind, baseline)

    def _compare(self, task: Task, kind: BaselineKind, baseline: Baseline | None) -> None:
        entry = task.served.entry
        try:
            answers = answers_of(task, self._settings.limits) if task.response is not None else None
            pairing = self._pairings.of(task.served, kind, baseline)
            if pairing is None:
                self._failed(entry.model, kind, "baseline_unusable")
                return
            if answers is not None and not answers.keys() & set(pairing.outputs):
                raise PairedError("bad_response", f"it has none of the model's float outputs {list(pairing.outputs)}")
            pairing.rotate()
            span = self._windows.span(task.arrived_ms)
            outcome = pairing.run(task.drawn.inputs, span, answers=answers, drawn=task.drawn)
        except OipError as error:
            self._failed(entry.model, kind, "bad_response", f"{error.reason}: {error.message}")
            return
        except PairedError as error:
            self._failed(entry.model, kind, error.reason, str(error))
            return
        except Exception:  # the next request may do better
            log.exception("paired.failed", model=entry.model, version=entry.version, kind=kind)
            self._failed(entry.model, kind, "internal")
            return
        comparison = outcome.comparison
        source = ServedVersion(entry.model, entry.version, task.served.digest)
        left_out = {item.probe: item.reason for item in pairing.unmatched} | dict(outcome.misfits)
        left_out |= dict.fromkeys(pairing.too_large, "larger than --paired-fetch-mib")
        left_out |= dict.fromkeys(self._windows.add(source, comparison), "its number of channels changes")
        self._note_left_out(source, kind, left_out)
        self._metrics.paired_requests_total.labels(entry.model, entry.version, kind).inc(comparison.n)
        self._metrics.paired_mismatched_total.labels(entry.model, entry.version, kind).inc(comparison.mismatched)

    def _note_left_out(self, source: ServedVersion, kind: BaselineKind, left_out: dict[str, str]) -> None:
        """Counts the probes that are not compared, and logs them where they are not the same as before."""
        key = (source.model, source.version)
        self._metrics.paired_unmatched_probes.labels(*key, kind).set(len(left_out))
        before, self._left_out[key, kind] = self._left_out.get((key, kind), {}), left_out
        if before != left_out:
            if not left_out:
                log.info("paired.all_compared", model=source.model, version=source.version, kind=kind)
                return
            listing = [f"{probe}: {reason}" for probe, reason in sorted(left_out.items())]
            log.warning("paired.left_out", model=source.model, version=source.version, kind=kind, probes=listing)

    def _unload_gone(self) -> None:
        self._pairings.keep(self._targets)
        for key in [key for key in self._left_out if key[0] not in self._targets]:
            del self._left_out[key]
            self._metrics.paired_unmatched_probes.remove(*key[0], key[1])

    def _failed(self, model: str, kind: str, reason: str, message: str | None = None) -> None:
        self._metrics.paired_failed_total.labels(model, kind, reason).inc()
        if message is not None:
            log.warning("paired.failed", model=model, kind=kind, reason=reason, message=message)

    def _send(self, closed: Iterable[tuple[ServedVersion, wire.Comparison]]) -> None:
        for source, comparison in closed:
            self._sender.comparison(source.model, source.version, source.digest, comparison)
