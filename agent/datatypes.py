"""Element types of tensors by their names: the Open Inference Protocol's, ONNX's, onnxruntime's, and numpy's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_INTEGERS = tuple(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))

ONNX: Mapping[str, str] = {
    "BOOL": "BOOL",
    "FP16": "FLOAT16",
    "BF16": "BFLOAT16",
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
    "BYTES": "STRING",
    **{name: name for name in _INTEGERS},
}
"""The protocol's name to that of onnx.TensorProto."""

RUNTIME: Mapping[str, str] = {name: f"tensor({onnx.lower()})" for name, onnx in ONNX.items()}
"""The protocol's name to onnxruntime's, such as "tensor(float)"."""

NUMPY: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    **{name: np.dtype(name.lower()).newbyteorder("<") for name in _INTEGERS},
}
"""The protocol's name to numpy's type, little-endian as on the wire. numpy has no BF16, and BYTES are no numbers."""
