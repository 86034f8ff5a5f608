"""What onnxruntime knows of tensors behind operators that are its own."""

from __future__ import annotations

import onnxruntime as ort

from agent.replay.providers import CPU


def output_types(model: bytes) -> dict[str, tuple[str, list[int | str | None]]]:
    """Type and shape of a model's outputs as onnxruntime infers them; empty where it cannot load the model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model, options, providers=[CPU])
    except Exception:  # onnxruntime's errors share no base class below Exception
        return {}
    return {value.name: (value.type, list(value.shape)) for value in session.get_outputs()}
