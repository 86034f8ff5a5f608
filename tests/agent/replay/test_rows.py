"""One row, drawn at random, stands for its request: counts are of requests, and rows that are alike are no evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.replay.batching import Tensors
from agent.replay.rows import Batch, batches, draw, halves
from agent.summary import from_pooled
from detector.statistics.drift import drift

AXES = {"x": 0, "state": 1, "table": None}


def request(rows: int, first: int = 0) -> Tensors:
    """Row r of a request is r + first in every input that has rows."""
    places = np.arange(first, first + rows, dtype=np.float32)
    return {
        "x": np.tile(places[:, np.newaxis], (1, 3)),
        "state": np.tile(places[np.newaxis, :, np.newaxis], (2, 1, 1)),
        "table": np.ones(4, np.float32),
    }


def test_the_drawn_row_is_the_same_in_every_input() -> None:
    drawn = draw(request(7), AXES, None, 1, np.random.default_rng(1))
    assert (drawn.rows, drawn.kept.tolist()) == (7, [0])
    assert drawn.inputs["x"].tolist() == [[drawn.row] * 3]
    assert drawn.inputs["state"].ravel().tolist() == [drawn.row] * 2
    assert drawn.inputs["table"] is not None
    assert drawn.inputs["x"].base is None, "the body it came from is not held in memory by it"


def test_every_row_is_drawn_as_often() -> None:
    rng = np.random.default_rng(2)
    times = np.bincount([draw(request(4), AXES, None, 1, rng).row for _ in range(4000)], minlength=4)
    assert abs(times - 1000).max() < 130


@pytest.mark.parametrize("fixed", [None, 5])
@pytest.mark.parametrize("most", [1, 3, 9])
def test_rows_are_drawn_without_replacement(most: int, fixed: int | None) -> None:
    drawn = draw(request(5), AXES, fixed, most, np.random.default_rng(3))
    values = drawn.inputs["x"][drawn.kept, 0].tolist()
    assert len(values) == len(set(values)) == min(most, 5)
    assert values[0] == drawn.row
    assert len(drawn.inputs["x"]) == (5 if fixed else min(most, 5))


def test_a_model_without_an_axis_of_requests_is_run_as_it_is() -> None:
    inputs: Tensors = {"table": np.ones(4, np.float32)}
    drawn = draw(inputs, {"table": None}, None, 1, np.random.default_rng(0))
    assert (drawn.inputs, drawn.rows, drawn.row, drawn.kept.tolist()) == (inputs, 1, 0, [0])
    (batch,) = batches([(5, drawn)], {"table": None}, None, 8)
    assert (batch.kept.tolist(), batch.arrived_ms.tolist()) == ([0], [5])


def test_rows_of_several_requests_share_a_batch() -> None:
    rng = np.random.default_rng(4)
    drawn = [(at, draw(request(rows, 10 * at), AXES, None, 1, rng)) for at, rows in enumerate((3, 1, 8, 2, 5))]
    got = list(batches(drawn, AXES, None, 3))
    assert [len(batch.kept) for batch in got] == [3, 2]
    for batch in got:
        assert (batch.inputs["x"][:, 0] // 10).tolist() == batch.arrived_ms.tolist()
    first, second = halves(got[0], AXES)
    assert [*first.arrived_ms, *second.arrived_ms] == [0, 1, 2]
    assert second.inputs["state"].shape == (2, 2, 1)


def test_a_fixed_batch_is_not_cut_nor_mixed() -> None:
    rng = np.random.default_rng(5)
    drawn = [(at, draw(request(4, 10 * at), AXES, 4, 2, rng)) for at in range(3)]
    got: list[Batch] = list(batches(drawn, AXES, 4, 32))
    assert [batch.inputs["x"][:, 0].tolist() for batch in got] == [
        [10 * at + row for row in range(4)] for at in range(3)
    ]
    assert all(batch.whole and len(batch.kept) == 2 for batch in got)
    assert [batch.arrived_ms.tolist() for batch in got] == [[0, 0], [1, 1], [2, 2]]


def pooled(requests: list[NDArray[Any]], most: int, rng: np.random.Generator) -> NDArray[Any]:
    """The rows that count, as a model that changes nothing gives them."""
    drawn = [(0, draw({"x": rows}, {"x": 0}, None, most, rng)) for rows in requests]
    return np.concatenate([batch.inputs["x"] for batch in batches(drawn, {"x": 0}, None, 32)])


def p_values(most: int, windows: int = 60, per_window: int = 60) -> NDArray[np.float64]:
    """Of healthy windows whose clients send 32 rows of one session in every request, all alike."""
    rng = np.random.default_rng(6)

    def window(requests: int) -> Any:
        sessions = np.maximum(rng.normal(size=(requests, 8)), 0).astype(np.float32)
        values = pooled([np.repeat(one[np.newaxis], 32, axis=0) for one in sessions], most, rng)
        return from_pooled(values, values, (values > 0).astype(np.float32))

    reference = window(20 * per_window)
    return np.concatenate([drift(reference, window(per_window), 0.0).p_value for _ in range(windows)])


def test_sessions_of_rows_that_are_alike_raise_no_false_alarm() -> None:
    """480 healthy tests: by rows most of them would alarm, by requests no more than chance allows."""
    assert (p_values(32) < 1e-3).mean() > 0.5, "what counting rows does"
    by_request = p_values(1)
    assert (by_request < 0.05).mean() < 0.08
    assert (by_request < 1e-3).sum() <= 4
