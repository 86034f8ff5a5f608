"""Loads a model version: instruments it, times it, and opens its sessions."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from agent.budget.duty import Duty
from agent.budget.pace import Pace
from agent.capture import choice
from agent.capture.calibration import Calibration, calibrate
from agent.capture.engine import Engine
from agent.capture.gauges import ModelGauges
from agent.capture.settings import CaptureSettings
from agent.instrument import Instrumented, instrument, open_model
from agent.intake.catalog import ModelMetadata
from agent.intake.tensors import TensorSpec
from agent.metrics import AgentMetrics
from agent.replay import Port, Replayer, output_types
from agent.serving.repository import Entry, digest

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


class Loader:
    """Belongs to the thread that watches the repository."""

    def __init__(self, metrics: AgentMetrics, settings: CaptureSettings, duty: Duty | None) -> None:
        """``duty`` is the agent's: what timing a model takes is paid from it."""
        self._metrics = metrics
        self._settings = settings
        self._duty = duty

    def load(self, entry: Entry, stopped: Callable[[], bool]) -> tuple[Served, Calibration]:
        """The version, ready to run, and what its timing found.

        Raises Stopped once ``stopped()``, NoMemory where the agent may take no more, and InstrumentError, ChoiceError,
        ReplayError or OSError where the files cannot be used.
        """
        gauges = ModelGauges(self._metrics, entry.model, entry.version)
        opened = open_model(entry.path)
        files = frozenset(path.name for path in (entry.path, *opened.external_files))
        checksum = digest(entry.path, opened.external_files)
        observed = self._observe(entry, instrument(opened, output_types))
        calibration = self._calibrate(entry, observed, stopped)
        settings = replace(self._settings, device=self._settings.device.owned("replay"))
        replayer = Engine(observed, calibration.groups, settings, gauges)
        metadata = ModelMetadata(entry.model, entry.version, True, _specs(replayer.inputs), _specs(replayer.outputs))
        return Served(entry, files, checksum, observed, replayer, metadata, gauges), calibration

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
        device = self._settings.device.owned("calibration").sharing(2)
        bound = log.bind(model=entry.model, version=entry.version)

        def build(part: Instrumented) -> Replayer:
            return Replayer.on(device, part)

        if self._duty is None:
            return calibrate(observed, self._settings, build, stopped, logger=bound)
        with Pace(self._duty, "calibration", entry.key, stopped) as pace:
            return calibrate(observed, self._settings, build, pace.step, pace.clock, logger=bound)

    def say(self, served: Served, calibration: Calibration) -> None:
        """Logs what was loaded, and where it does not keep the overhead budget."""
        entry, observed, replayer = served.entry, served.instrumented, served.engine
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


def _specs(ports: Sequence[Port]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(port.name, port.datatype, port.shape) for port in ports)
