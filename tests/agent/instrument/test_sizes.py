"""Sizes come from shapes: counted by hand for a small model, unknown where an extent is free."""

from __future__ import annotations

from agent.instrument import instrument
from tests.agent.instrument.checks import floats, graph, node
from tests.agent.models import sequence_block


def test_counted_by_hand() -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Flatten", "r", "f"), node("Gemm", "f v", "g"),
             node("Relu", "g", "y")]  # fmt: skip
    weights = {"w": floats(4, 3, 3, 3), "v": floats(4 * 6 * 6, 5)}
    sizes = instrument(graph(nodes, {"x": ("N", 3, 8, 8)}, {"y": 2}, weights)).sizes
    assert sizes.elements == {"x": 192, "r": 144, "y": 5}
    assert (sizes.dense["r"], sizes.dense["y"]) == (False, True), "a dense activation is fetched as it is"
    assert (sizes.fetched_bytes("r", 4), sizes.fetched_bytes("y", 5)) == (48, 20)
    assert sizes.fetched_bytes("r", None) is None


def test_free_extents_leave_sizes_open() -> None:
    assert instrument(sequence_block()).sizes.elements["relu1"] is None
