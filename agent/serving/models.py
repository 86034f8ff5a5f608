"""The models loaded from the repository: swaps in new versions, refuses broken ones with a reason."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agent.capture import choice
from agent.capture.calibration import Calibration, calibrate
from agent.capture.choice import ChoiceError
from agent.capture.engine import Engine
from agent.capture.gauges import ModelGauges
from agent.capture.settings import CaptureSettings
from agent.capture.timing import Stopped
from agent.delivery.heartbeats import Standing
from agent.instrument import Instrumented, InstrumentError, instrument, open_model
from agent.intake.catalog import ModelMetadata
from agent.intake.oip import TensorSpec
from agent.metrics import AgentMetrics
from agent.replay import Port, Replayer, ReplayError, output_types
from agent.serving.repository import MODEL_FILE, Entry, RepositoryError, digest, scan

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model version."""

    entry: Entry
    files: frozenset[str]
    """Names of the model's file and of those with its external data; a change of others is no change of the model."""
    digest: str
    instrumented: Instrumented
    engine: Engine
    metadata: ModelMetadata
    gauges: ModelGauges


class Models:
    """What the repository serves now. `version` and `models` answer from memory, from any thread."""

    def __init__(
        self,
        root: Path,
        metrics: AgentMetrics,
        on_deployment: Callable[[str, str, str, Instrumented, str], None],
        settings: CaptureSettings,
        *,
        on_refreshed: Callable[[Mapping[str, Served]], None] = lambda served: None,
    ) -> None:
        """``on_refreshed`` is called after every look at the repository, in the thread that watches it."""
        self._root = root
        self._metrics = metrics
        self._on_deployment = on_deployment
        self._on_refreshed = on_refreshed
        self._settings = settings
        self._served: dict[str, Served] = {}
        self._refused: dict[str, Entry] = {}
        self._seen: dict[str, Entry] | None = None
        self._unreadable: str | None = None
        self._warned_empty = False

    def served(self, model: str) -> Served | None:
        """The version of ``model`` that is served now."""
        return self._served.get(model)

    def version(self, model: str, version: str | None) -> ModelMetadata | None:
        """Metadata of the served version, or None where that or the named version is not served."""
        served = self._served.get(model)
        return served.metadata if served is not None and version in (None, served.entry.version) else None

    def models(self) -> Sequence[ModelMetadata]:
        return [served.metadata for _, served in sorted(self._served.items())]

    def standing(self) -> list[Standing]:
        """What is served now, and what lies in the repository and was refused."""
        seen = self._seen or {}
        served = [Standing(one.entry.model, one.entry.version, one.digest) for one in list(self._served.values())]
        refused = [entry for model, entry in list(self._refused.items()) if seen.get(model) == entry]
        return served + [Standing(entry.model, entry.version, "") for entry in refused]

    def refresh(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Loads what is new or changed, forgets what has gone; comes back soon once ``stopped()``.

        What appears or changes may be half copied: it is loaded once two looks in a row find its files the same, and
        at the first look of all, so that the start is not delayed; only what stays the same is called refused. A
        version that fails is tried again when a file of its folder changes.
        """
        try:
            found = scan(self._root)
        except (RepositoryError, OSError) as error:
            if str(error) != self._unreadable:
                log.error("repository.unreadable", reason=str(error))
            self._unreadable = str(error)
            return
        self._unreadable = None
        if not found and not self._warned_empty:
            log.warning("repository.empty", repository=str(self._root), expected=f"<model>/<version>/{MODEL_FILE}")
        self._warned_empty = not found
        before, self._seen = self._seen, found
        for model, entry in found.items():
            if self._is_served(entry) or self._refused.get(model) == entry or stopped():
                continue
            settled = before is not None and before.get(model) == entry
            if settled or before is None:
                self._load(entry, stopped, settled=settled)
        for model in self._served.keys() - found.keys():
            _retire(self._served.pop(model))
            log.info("model.removed", model=model)
        self._on_refreshed(self._served)

    def watch(self, interval_seconds: float, stop: threading.Event) -> None:
        """Refreshes until stopped."""
        be_nice(self._settings.nice)
        while not stop.is_set():
            self.refresh(stop.is_set)
            stop.wait(interval_seconds)

    def _is_served(self, entry: Entry) -> bool:
        served = self._served.get(entry.model)
        if served is None or served.entry.version != entry.version:
            return False
        return served.entry.of(served.files) == entry.of(served.files)

    def _load(self, entry: Entry, stopped: Callable[[], bool], *, settled: bool) -> None:
        """Makes the version the one that is served. Until it is ready, the former one serves."""
        try:
            served, calibration = self._prepare(entry, stopped)
        except Stopped:
            return
        except Exception as error:  # one model, whatever is wrong with it, may not keep the others from being followed
            if not settled:
                return  # it may be half copied; the next look tries again
            known = isinstance(error, (InstrumentError, ChoiceError, ReplayError, OSError))
            self._refused[entry.model] = entry
            self._metrics.rejected_total.labels(entry.model, "model_unusable").inc()
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            log.error("model.refused", model=entry.model, version=entry.version, reason=reason, exc_info=not known)
            return
        self._swap(served, calibration)
        self._say(entry, calibration, served.instrumented, served.engine)

    def _prepare(self, entry: Entry, stopped: Callable[[], bool]) -> tuple[Served, Calibration]:
        gauges = ModelGauges(self._metrics, entry.model, entry.version)
        opened = open_model(entry.path)
        files = frozenset(path.name for path in (entry.path, *opened.external_files))
        checksum = digest(entry.path, opened.external_files)
        observed = self._observe(entry, instrument(opened, output_types))
        calibration = self._calibrate(entry, observed, stopped)
        replayer = Engine(observed, calibration.groups, self._settings, gauges)
        metadata = ModelMetadata(entry.model, entry.version, True, _specs(replayer.inputs), _specs(replayer.outputs))
        return Served(entry, files, checksum, observed, replayer, metadata, gauges), calibration

    def _swap(self, served: Served, calibration: Calibration) -> None:
        entry = served.entry
        before = self._served.get(entry.model)
        # A re-written file with the same content is the same deployment.
        if before is None or (before.entry.version, before.digest) != (entry.version, served.digest):
            self._on_deployment(entry.model, entry.version, served.digest, served.instrumented, served.engine.provider)
        self._served[entry.model] = served
        if before is not None:
            _retire(before)
        self._refused.pop(entry.model, None)
        self._metrics.start_model(entry.model)
        served.gauges.show(served.engine.provider, calibration)

    def _observe(self, entry: Entry, whole: Instrumented) -> Instrumented:
        """The version instrumented at the probes that are wanted."""
        chosen = choice.choose(whole.probes, self._settings.probes)
        if chosen.unmatched:
            log.warning(
                "probes.unmatched",
                model=entry.model,
                version=entry.version,
                globs=list(chosen.unmatched),
                names=choice.listing(whole.probes),
            )
        if not chosen.left_out:
            return whole
        return replace(whole.subset(chosen.names), not_probed=(*whole.not_probed, *chosen.left_out))

    def _calibrate(self, entry: Entry, observed: Instrumented, stopped: Callable[[], bool]) -> Calibration:
        # Two sessions are timed against each other; together they keep the limit.
        device = self._settings.device.sharing(2)
        bound = log.bind(model=entry.model, version=entry.version)
        return calibrate(observed, self._settings, lambda part: Replayer.on(device, part), stopped, logger=bound)

    def _say(self, entry: Entry, calibration: Calibration, observed: Instrumented, replayer: Engine) -> None:
        ratio = None if calibration.ratio is None else round(calibration.ratio, 3)
        log.info(
            "model.loaded",
            model=entry.model,
            version=entry.version,
            probes=len(observed.probes),
            not_probed=len(observed.not_probed),
            provider=replayer.provider,
            groups=len(calibration.groups),
            overhead_ratio=ratio,
            overhead_timed=calibration.timed,
        )
        if not calibration.within:
            cost = "even one activation at a time costs more"
            if calibration.ratio is None:
                cost = "the model could not be timed, and one activation at a time is assumed to cost more"
            log.warning(
                "budget.unmet",
                model=entry.model,
                version=entry.version,
                overhead_ratio=ratio,
                budget=self._settings.overhead_budget,
                hint=f"{cost}; leave out the largest with --probes, or allow more",
            )


def be_nice(level: int = 10) -> None:
    """Lowers the priority of the calling thread, and of the threads it starts, to a nice level from 0 to 19.

    A thread that is nicer already stays so: to be less nice takes a privilege.
    """
    if hasattr(os, "setpriority"):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(level, os.getpriority(os.PRIO_PROCESS, thread)))


def _retire(served: Served) -> None:
    """Takes a version's series and sessions away, for others may hold on to the rest of it for a while."""
    served.gauges.forget()
    served.engine.close()


def _specs(ports: Sequence[Port]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(port.name, port.datatype, port.shape) for port in ports)
