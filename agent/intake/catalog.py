"""What intake has to know about the models: a read-only view that the repository gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agent.budget.shares import ModelKey
from agent.intake.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """One version of a model in the repository."""

    name: str
    version: str
    ready: bool
    """Whether requests can be replayed on it now."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def key(self) -> ModelKey:
        """Model and version."""
        return self.name, self.version


class Catalog(Protocol):
    """Asked on the event loop for every request: answers from memory, never blocks."""

    def version(self, model: str, version: str | None) -> ModelMetadata | None:
        """One version, or the server's default where `version` is None; None where there is no such."""

    def models(self) -> Sequence[ModelMetadata]:
        """All loaded versions of all models, ascending by name and version."""


def describe(model: ModelMetadata, versions: Sequence[str]) -> dict[str, Any]:
    """The protocol's model metadata, ready for JSON."""
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": "onnxruntime_onnx",
        "inputs": [_describe_tensor(spec) for spec in model.inputs],
        "outputs": [_describe_tensor(spec) for spec in model.outputs],
    }


def _describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
