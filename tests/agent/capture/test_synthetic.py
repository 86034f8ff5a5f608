"""Made-up inputs have the types and extents that the model wants."""

from __future__ import annotations

import numpy as np
import pytest

from agent.capture.synthetic import synthetic
from agent.replay import Port


def test_types_extents_and_fill() -> None:
    ports = [
        Port("image", "FP32", (-1, 3, -1, 5)),
        Port("ids", "INT64", (-1, -1)),
        Port("mask", "BOOL", (-1, 7)),
        Port("state", "FP16", (2, -1, 4)),
        Port("pixels", "UINT8", (8, 3)),
        Port("shared", "FP64", (-1,)),
    ]
    made = synthetic(ports, {"state": 1, "shared": None}, batch=8, extent=6, fill=1)
    assert {name: value.shape for name, value in made.items()} == {
        "image": (8, 3, 6, 5),
        "ids": (8, 6),
        "mask": (8, 7),
        "state": (2, 8, 4),
        "pixels": (8, 3),
        "shared": (6,),
    }
    assert [value.dtype.name for value in made.values()] == ["float32", "int64", "bool", "float16", "uint8", "float64"]
    assert made["ids"].min() == 1 and made["mask"].all()
    assert abs(np.std(made["image"]) - 1) < 0.1


def test_a_type_that_cannot_be_made_up_is_named() -> None:
    with pytest.raises(ValueError, match="type BYTES can be made up for input text"):
        synthetic([Port("text", "BYTES", (-1,))], {}, 1, 1, 0)
