"""Groups of probes: complete, balanced, spread over the depth; and how many of them a budget needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.groups import first_count, next_count, partition
from agent.wire import Probe


def probes(count: int) -> list[Probe]:
    return [
        Probe("in", "Input", "in", 3, 1, "input", 0, False),
        *(Probe(f"relu{i}", "Relu", f"t{i}", 4, 1, "activation", i + 1, True) for i in range(count)),
        Probe("out", "Output", "out", 3, 1, "output", count + 1, False),
    ]


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=60), st.data())
def test_every_activation_is_in_one_group_and_groups_are_alike(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    elements = {f"relu{i}": size for i, size in enumerate(sizes)}
    groups = partition(probes(len(sizes)), elements, count)
    inner = [sorted(group - {"in", "out"}) for group in groups]
    assert all({"in", "out"} <= group for group in groups)
    assert sorted(name for names in inner for name in names) == sorted(elements)
    assert max(map(len, inner)) - min(map(len, inner)) <= 1
    totals = [sum(elements[name] for name in names) for names in inner]
    assert max(totals) - min(totals) <= max(sizes)
    for start in range(0, len(sizes) - count + 1, count):
        row = {f"relu{i}" for i in range(start, start + count)}
        assert all(len(row.intersection(names)) == 1 for names in inner), "each group sees the whole depth"


def test_unknown_sizes_count_as_the_middle_of_the_known() -> None:
    groups = partition(probes(4), {"relu0": 5, "relu1": None, "relu2": 5, "relu3": 5}, 2)
    assert [len(group) for group in groups] == [4, 4]
    assert partition(probes(2), {}, 2)[0] == {"in", "out", "relu0"}


def test_a_model_cannot_be_parted_further_than_its_activations() -> None:
    with pytest.raises(ValueError, match="3 activations cannot be parted into 4 groups"):
        partition(probes(3), {}, 4)


@pytest.mark.parametrize(
    ("excess", "budget", "most", "count"),
    [(0.05, 0.10, 49, 1), (0.10, 0.10, 49, 1), (0.15, 0.10, 49, 2), (0.30, 0.10, 49, 3), (5.0, 0.10, 8, 8)],
)
def test_first_count_is_the_fewest_that_share_the_excess(excess: float, budget: float, most: int, count: int) -> None:
    assert first_count(excess, budget, most) == count


@given(st.floats(0, 10), st.floats(0.001, 2), st.integers(1, 200), st.data())
def test_growth_ends_within_the_budget_or_at_one_activation_each(
    excess: float, budget: float, most: int, data: st.DataObject
) -> None:
    count = first_count(excess, budget, most)
    for _ in range(most):
        more = next_count(count, excess, budget, most)
        if more is None:
            assert excess <= budget or count == most
            return
        assert count < more <= most
        count = more
        excess = data.draw(st.floats(0, excess))
    raise AssertionError("it did not end")
