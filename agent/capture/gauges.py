"""Says in metrics and in the log where a model version is replayed, and what that costs."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import structlog

from agent.capture.calibration import Calibration
from agent.metrics import AgentMetrics

log = structlog.get_logger()


class ModelGauges:
    """The series of one model version; an Engine's observer. From `show` to `forget`, from any thread."""

    def __init__(self, metrics: AgentMetrics, model: str, version: str) -> None:
        self._metrics = metrics
        self._model = model
        self._version = version
        self._provider: str | None = None
        self._gave_up_gpu = False
        self._absent: set[str] = set()
        self._lock = threading.Lock()  # the replay thread moves what the models thread forgets
        metrics.out_of_memory_total.labels(model, version)

    def show(self, provider: str, calibration: Calibration) -> None:
        """The version is served now."""
        labels = self._model, self._version
        with self._lock:
            self._provider = provider
            self._metrics.model_info.labels(*labels, provider).set(1)
            self._metrics.gpu_fallback.labels(self._model, self._version).set(float(self._gave_up_gpu))
            ratio = float("nan") if calibration.ratio is None else calibration.ratio
            self._metrics.capture_overhead_ratio.labels(*labels).set(ratio)
            self._metrics.probe_groups.labels(*labels).set(len(calibration.groups))
            self._metrics.absent_probes.labels(*labels).set(len(self._absent))

    def forget(self) -> None:
        """The version is not served any more."""
        with self._lock:
            if self._provider is not None:
                self._metrics.model_info.remove(self._model, self._version, self._provider)
                self._metrics.capture_overhead_ratio.remove(self._model, self._version)
                self._metrics.probe_groups.remove(self._model, self._version)
                self._metrics.absent_probes.remove(self._model, self._version)
                self._metrics.gpu_fallback.remove(self._model, self._version)
                self._provider = None

    def out_of_memory(self, batch: int, reason: str) -> None:
        self._metrics.out_of_memory_total.labels(self._model, self._version).inc()
        log.warning("replay.out_of_memory", model=self._model, version=self._version, batch=batch, reason=reason)

    def moved(self, provider: str, reason: str, *, gave_up_gpu: bool) -> None:
        with self._lock:
            self._gave_up_gpu = gave_up_gpu
            if self._provider is not None:
                self._metrics.gpu_fallback.labels(self._model, self._version).set(float(gave_up_gpu))
                self._metrics.model_info.remove(self._model, self._version, self._provider)
                self._metrics.model_info.labels(self._model, self._version, provider).set(1)
                self._provider = provider
        event = "replay.gpu_given_up" if gave_up_gpu else "replay.gpu_back"
        log.warning(event, model=self._model, version=self._version, provider=provider, reason=reason)

    def absent(self, probes: Mapping[str, str]) -> None:
        """Said once for each probe."""
        with self._lock:
            new = [name for name in probes if name not in self._absent]
            self._absent.update(new)
            if self._provider is not None:
                self._metrics.absent_probes.labels(self._model, self._version).set(len(self._absent))
        for name in new:
            log.warning("probe.absent", model=self._model, version=self._version, probe=name, reason=probes[name])
