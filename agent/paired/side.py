"""One of the two models of a pairing: its file, and a session that fetches some of its tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from agent.instrument import open_model
from agent.instrument.whole import WholeGraph
from agent.paired.errors import PairedError
from agent.replay import Device, FullSession
from agent.replay.batching import Axes, Tensors, count
from agent.serving.repository import digest


class Side:
    """One model file, and the session that fetches some of its tensors."""

    def __init__(self, path: Path, checksum: str, device: Device) -> None:
        """``checksum`` is the sha256 of the file that is meant: another one in its place is not run."""
        self._path = path
        self._checksum = checksum
        self._device = device
        self._session: FullSession | None = None

    @property
    def provider(self) -> str:
        """The execution provider of the open session; empty where none is open."""
        return "" if self._session is None else self._session.provider

    def graph(self) -> WholeGraph:
        """The model as it is in the file, but for its weights; nothing of it is kept."""
        file = open_model(self._path)
        if digest(self._path, file.external_files) != self._checksum:
            raise PairedError("served_changed", f"{self._path} is no longer the file that was loaded")
        return WholeGraph(file)

    def open(self, tensors: Sequence[str]) -> None:
        """A session for these tensors; the former one is given up first, to have one in memory at a time."""
        self._session = None
        self._session = FullSession(self.graph().expose(tensors), self._device)

    def close(self) -> bool:
        """Frees the session; False where none was open."""
        was_open, self._session = self._session is not None, None
        return was_open

    def sizes(self, tensors: Sequence[str], inputs: Tensors, axes: Axes) -> dict[str, int]:
        """Bytes per request of each of the tensors, as far as it follows from the shapes of the inputs."""
        requests = max(count(inputs, axes), 1)
        graph, shapes = self.graph(), {name: value.shape for name, value in inputs.items()}
        known = graph.bytes_per_request(shapes, requests)
        unknown = [tensor for tensor in tensors if tensor not in known]
        if unknown:  # behind operators that onnx does not know, but onnxruntime does
            session = FullSession(graph.expose(unknown, shapes), self._device.on_cpu())
            for tensor, shape in session.shapes.items():
                if shape and -1 not in shape:
                    known[tensor] = -(-4 * math.prod(shape) // requests)
        return {tensor: known[tensor] for tensor in tensors if tensor in known}

    def run(self, inputs: Tensors) -> Tensors:
        """Values of the opened tensors; raises ReplayError."""
        if self._session is None:
            raise PairedError("internal", "no session is open")
        return self._session.run(inputs)
