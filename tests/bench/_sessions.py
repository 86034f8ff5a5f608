"""Sessions, input batches and the kernel profile that the capture benchmark's contenders share."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]

POOLING_PREFIX = "reluscope:"


@dataclass(frozen=True, slots=True)
class Device:
    """Where every contender of a cell runs; equal for all."""

    provider: str
    """An onnxruntime execution provider, such as CPUExecutionProvider."""
    threads: int
    """CPU threads of one run."""

    def options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Threads of a session that has had its turn would otherwise spin into the next contender's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        return options

    @property
    def providers(self) -> list[str]:
        return list(dict.fromkeys([self.provider, "CPUExecutionProvider"]))

    def session(self, model: Path, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
        return ort.InferenceSession(str(model), options or self.options(), providers=self.providers)


def feeds(shapes: dict[str, list[int]], batch: int, seed: int) -> Feeds:
    """Standard normal float32 inputs of these shapes per request."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((batch, *shape), dtype=np.float32) for name, shape in shapes.items()}


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """Milliseconds of one run by operator: of what instrumentation added, and of the model itself."""

    pooling: dict[str, float]
    own: dict[str, float]


def kernel_times(models: Sequence[Path], device: Device, inputs: Feeds, runs: int) -> list[KernelTimes]:
    """Sums onnxruntime's own kernel timings, each node's fastest of ``runs``; the models take turns.

    Far less noisy than the time of whole runs, but without what onnxruntime spends between kernels.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for place, model in enumerate(models):
            options = device.options()
            options.enable_profiling = True
            options.profile_file_prefix = f"{folder}/{place}"
            sessions.append(device.session(model, options))
        for _ in range(runs + 1):
            for session in sessions:
                session.run(None, inputs)
        return [_sums(json.loads(Path(session.end_profiling()).read_text())) for session in sessions]


def _sums(events: list[dict[str, Any]]) -> KernelTimes:
    warm = next(event["ts"] + event["dur"] for event in events if event["name"] == "model_run")
    fastest: dict[tuple[bool, str, str], float] = {}
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith("_kernel_time") or event["ts"] < warm:
            continue
        ours = event["name"].startswith(POOLING_PREFIX)
        node = (ours, event["args"]["op_name"], event["name"])
        fastest[node] = min(event["dur"], fastest.get(node, float("inf")))
    sums: tuple[dict[str, float], dict[str, float]] = (defaultdict(float), defaultdict(float))
    for (ours, op, _), duration in fastest.items():
        sums[ours][op] += duration / 1000
    return KernelTimes(pooling=_largest_first(sums[True]), own=_largest_first(sums[False]))


def _largest_first(times: dict[str, float]) -> dict[str, float]:
    return {op: round(ms, 3) for op, ms in sorted(times.items(), key=lambda item: -item[1])}
