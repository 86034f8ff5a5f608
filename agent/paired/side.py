"""One of the two models of a pairing: its file, and a session that fetches some of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from agent.instrument import load
from agent.instrument.whole import WholeGraph
from agent.paired.errors import PairedError
from agent.paired.settings import PairedSettings
from agent.replay import FullSession
from agent.repository import digest

Tensors = Mapping[str, NDArray[Any]]


class Side:
    """One model file, and the session that fetches some of its tensors."""

    def __init__(self, path: Path, checksum: str, settings: PairedSettings, *, cpu_only: bool) -> None:
        """``checksum`` is the sha256 of the file that is meant: another one in its place is not run."""
        self._path = path
        self._checksum = checksum
        self._settings = settings
        self._cpu_only = cpu_only
        self._session: FullSession | None = None

    def graph(self) -> WholeGraph:
        """The model as it is in the file; nothing of it is kept, so that its weights are in memory only once."""
        if digest(self._path) != self._checksum:
            raise PairedError("served_changed", f"{self._path} is no longer the file that was loaded")
        return WholeGraph(load(self._path))

    def open(self, tensors: Sequence[str]) -> None:
        """A session for these tensors; the former one is given up first, to have one in memory at a time."""
        self._session = None
        self._session = FullSession(
            self.graph().expose(tensors),
            threads=self._settings.threads,
            gpu_mem_limit=self._settings.gpu_mem_limit,
            cpu_only=self._cpu_only,
        )

    def sizes(self, tensors: Sequence[str], inputs: Tensors) -> dict[str, int]:
        """Bytes per request of each of the tensors, as far as it follows from the shapes of the inputs."""
        graph, shapes = self.graph(), {name: value.shape for name, value in inputs.items()}
        known = graph.bytes_per_request(shapes)
        unknown = [tensor for tensor in tensors if tensor not in known]
        if unknown:  # behind operators that onnx does not know, but onnxruntime does
            session = FullSession(graph.expose(unknown, shapes), threads=1, gpu_mem_limit=0, cpu_only=True)
            for tensor, shape in session.shapes.items():
                if shape and -1 not in shape:
                    known[tensor] = -(-4 * math.prod(shape) // max(requests_of(inputs), 1))
        return {tensor: known[tensor] for tensor in tensors if tensor in known}

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Values of the opened tensors; raises ReplayError."""
        if self._session is None:
            raise PairedError("internal", "no session is open")
        return self._session.run(dict(inputs))


def requests_of(inputs: Tensors) -> int:
    """The extent of the first axis."""
    return len(next(iter(inputs.values())))


def first_rows(values: Tensors, requests: int) -> dict[str, NDArray[Any]]:
    """Without the rows that fill up a fixed batch."""
    return {name: value[:requests] if value.ndim else value for name, value in values.items()}
