"""The models loaded from the repository: swaps in new versions, refuses broken ones with a reason."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.instrument import Instrumented, InstrumentError, instrument, open_model
from agent.intake.catalog import ModelMetadata
from agent.intake.oip import TensorSpec
from agent.metrics import AgentMetrics
from agent.replay import Port, Replayer, ReplayError, output_types
from agent.repository import MODEL_FILE, Entry, RepositoryError, digest, scan

log = structlog.get_logger()
_NICE = 10  # replay yields to the server that shares the pod's CPU


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model version."""

    entry: Entry
    digest: str
    instrumented: Instrumented
    replayer: Replayer
    metadata: ModelMetadata


class Models:
    """What the repository serves now. `version` and `models` answer from memory, from any thread."""

    def __init__(
        self,
        root: Path,
        metrics: AgentMetrics,
        on_deployment: Callable[[Entry, str, Instrumented, str], None],
        *,
        threads: int,
        gpu_mem_limit: int,
        on_refreshed: Callable[[Mapping[str, Served]], None] = lambda served: None,
    ) -> None:
        """``on_refreshed`` is called after every look at the repository, in the thread that watches it."""
        self._root = root
        self._metrics = metrics
        self._on_deployment = on_deployment
        self._threads = threads
        self._gpu_mem_limit = gpu_mem_limit
        self._on_refreshed = on_refreshed
        self._served: dict[str, Served] = {}
        self._refused: dict[str, Entry] = {}
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

    def refresh(self) -> None:
        """Loads what is new or changed, forgets what has gone.

        A version that fails is tried again when its file changes.
        """
        try:
            found = scan(self._root)
        except RepositoryError as error:
            if str(error) != self._unreadable:
                log.error("repository.unreadable", reason=str(error))
            self._unreadable = str(error)
            return
        self._unreadable = None
        if not found and not self._warned_empty:
            log.warning("repository.empty", repository=str(self._root), expected=f"<model>/<version>/{MODEL_FILE}")
        self._warned_empty = not found
        for model, entry in found.items():
            served = self._served.get(model)
            if (served is None or served.entry != entry) and self._refused.get(model) != entry:
                self._load(entry)
        for model in self._served.keys() - found.keys():
            self._forget(self._served.pop(model))
            log.info("model.removed", model=model)
        self._on_refreshed(self._served)

    def watch(self, interval_seconds: float, stop: threading.Event) -> None:
        """Refreshes until stopped."""
        be_nice()
        while not stop.is_set():
            self.refresh()
            stop.wait(interval_seconds)

    def _load(self, entry: Entry) -> None:
        try:
            opened = open_model(entry.path)
            checksum = digest(entry.path, opened.external_files)
            instrumented = instrument(opened, output_types)
            replayer = Replayer(instrumented, threads=self._threads, gpu_mem_limit=self._gpu_mem_limit)
        except (InstrumentError, ReplayError, OSError) as error:
            self._refused[entry.model] = entry
            self._metrics.rejected_total.labels(entry.model, "model_unusable").inc()
            log.error("model.refused", model=entry.model, version=entry.version, reason=str(error))
            return
        before = self._served.get(entry.model)
        metadata = ModelMetadata(entry.model, entry.version, True, _specs(replayer.inputs), _specs(replayer.outputs))
        served = Served(entry, checksum, instrumented, replayer, metadata)
        # A re-written file with the same content is the same deployment.
        if before is None or (before.entry.version, before.digest) != (entry.version, checksum):
            self._on_deployment(entry, checksum, instrumented, replayer.provider)
        if before is not None:
            self._forget(before)
        self._served[entry.model] = served
        self._refused.pop(entry.model, None)
        self._metrics.start_model(entry.model)
        self._metrics.model_info.labels(entry.model, entry.version, replayer.provider).set(1)
        log.info(
            "model.loaded",
            model=entry.model,
            version=entry.version,
            probes=len(instrumented.probes),
            not_probed=len(instrumented.not_probed),
            provider=replayer.provider,
        )

    def _forget(self, served: Served) -> None:
        self._metrics.model_info.remove(served.entry.model, served.entry.version, served.replayer.provider)


def be_nice() -> None:
    """Lowers the priority of the calling thread and of the threads it starts."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _specs(ports: Sequence[Port]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(port.name, port.datatype, port.shape) for port in ports)
