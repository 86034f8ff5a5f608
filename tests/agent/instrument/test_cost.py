"""Estimates come from shapes: counted by hand for a small model, unknown where an extent is free."""

from __future__ import annotations

from agent.instrument import instrument
from tests.agent.instrument.checks import floats, graph, node
from tests.agent.models import resnet50, sequence_block


def test_counted_by_hand() -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Flatten", "r", "f"), node("Gemm", "f v", "g"),
             node("Relu", "g", "y")]  # fmt: skip
    weights = {"w": floats(4, 3, 3, 3), "v": floats(4 * 6 * 6, 5)}
    cost = instrument(graph(nodes, {"x": ("N", 3, 8, 8)}, {"y": 2}, weights)).cost
    assert cost.operations == 2 * (4 * 36 * 27 + 5 * 144)
    assert cost.moved_bytes == 8 * (4 * 36 + 5)
    assert cost.elements == {"x": 192, "r": 144, "y": 5}
    assert cost.pooling_bytes("r") == 5 * 4 * 144
    assert cost.pooling_bytes("y") == 0, "a dense activation is fetched as it is"
    assert (cost.fetched_bytes("r", 4), cost.fetched_bytes("y", 5)) == (48, 20)


def test_resnet50_is_about_what_was_measured() -> None:
    cost = instrument(resnet50()).cost
    assert 7e9 < cost.operations < 9e9
    assert cost.ratio is not None
    assert 1.05 < cost.ratio < 1.2


def test_free_extents_leave_the_estimate_open() -> None:
    cost = instrument(sequence_block()).cost
    assert not cost.complete
    assert cost.ratio is None
    assert cost.elements["relu1"] is None
