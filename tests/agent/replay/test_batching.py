"""Requests are stacked, cut and filled up along the axis on which each input has them."""

from __future__ import annotations

import numpy as np
import pytest

from agent.replay import batching

AXES = {"x": 0, "state": 1, "flag": None}


def request(rows: int, first: float, flag: float = 0.0) -> batching.Tensors:
    rising = first + np.arange(rows, dtype=np.float32)
    return {
        "x": np.repeat(rising[:, None], 3, axis=1),
        "state": np.repeat(rising[None, :, None], 2, axis=0),
        "flag": np.array(flag, np.float32),
    }


def test_a_batch_is_cut_into_what_it_was_stacked_from() -> None:
    parts = [request(2, 0), request(1, 10), request(3, 20)]
    batch = batching.stack(parts, AXES)
    assert batch["x"].shape == (6, 3)
    assert batch["state"].shape == (2, 6, 1)
    assert batching.count(batch, AXES) == 6
    start = 0
    for part in parts:
        stop = start + batching.count(part, AXES)
        piece = batching.cut(batch, AXES, start, stop)
        assert all(np.array_equal(piece[name], part[name]) for name in part)
        start = stop


def test_only_requests_with_equal_shapes_and_shared_inputs_go_together() -> None:
    assert batching.key(request(2, 0), AXES) == batching.key(request(3, 5), AXES)
    assert batching.key(request(2, 0), AXES) != batching.key(request(2, 0, flag=1.0), AXES)
    longer = request(2, 0) | {"x": np.zeros((2, 4), np.float32)}
    assert batching.key(request(2, 0), AXES) != batching.key(longer, AXES)


def test_a_fixed_batch_is_filled_up_by_repeating_requests() -> None:
    full = batching.fill(request(2, 7), AXES, 5)
    assert full["x"][:, 0].tolist() == [7, 8, 7, 8, 7]
    assert full["state"][0, :, 0].tolist() == [7, 8, 7, 8, 7]
    assert full["flag"].shape == ()


def test_inputs_that_disagree_are_refused_by_name() -> None:
    torn = request(2, 0) | {"state": np.zeros((2, 3, 1), np.float32)}
    with pytest.raises(ValueError, match="x 2, state 3"):
        batching.count(torn, AXES)
