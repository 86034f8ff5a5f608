"""How many groups of probes keep the budget, and which probe goes into which group. Pure.

The cost of a probe grows with the elements that it reads, so k groups of equal elements each add about a k-th of what
all probes add together. A group observes every k-th activation, so that each batch still sees the whole depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median_low

from agent.wire import Probe

ProbeGroup = frozenset[str]

UNTIMED_EXCESS = 0.5
"""What all probes are taken to add to a plain run where that cannot be timed: more than any model measured added."""


def partition(probes: Sequence[Probe], elements: Mapping[str, int | None], count: int) -> tuple[ProbeGroup, ...]:
    """``count`` groups of activations, with all inputs and outputs in each: those are small, and say what changed.

    ``probes`` are in graph order; ``elements`` by probe name, the middle of the known ones where one is unknown. Of
    every ``count`` activations in a row each group gets one, the largest going to the group that has least so far.
    Two groups' elements then differ by no more than the largest probe has, and their numbers of probes by one.
    """
    activations = [probe.name for probe in probes if probe.kind == "activation"]
    ends = frozenset(probe.name for probe in probes if probe.kind != "activation")
    if not 1 <= count <= max(1, len(activations)):
        raise ValueError(f"{len(activations)} activations cannot be parted into {count} groups")
    sizes = _sizes(activations, elements)
    members: list[list[str]] = [[] for _ in range(count)]
    totals = [0] * count
    for start in range(0, len(activations), count):
        row = sorted(activations[start : start + count], key=lambda name: -sizes[name])
        free = sorted(range(count), key=lambda group: (totals[group], group))
        for name, group in zip(row, free, strict=False):
            members[group].append(name)
            totals[group] += sizes[name]
    return tuple(ends | frozenset(names) for names in members)


def first_count(excess: float, budget: float, most: int) -> int:
    """Groups to begin with, where all probes together add ``excess`` to a plain run, a share as ``budget`` is.

    One where that is within the budget; ``most`` is the number of activations.
    """
    if excess <= budget:
        return 1
    return max(1, min(most, math.ceil(excess / budget - 1e-9)))


def next_count(count: int, excess: float, budget: float, most: int) -> int | None:
    """Groups to try after ``count`` groups were measured to add ``excess`` each; None where there is nothing to try.

    Either they are within the budget, or each has one activation only.
    """
    if excess <= budget or count >= most:
        return None
    return min(most, max(count + 1, math.ceil(count * excess / budget - 1e-9)))


def _sizes(names: Sequence[str], elements: Mapping[str, int | None]) -> dict[str, int]:
    known = {name: size for name in names if (size := elements.get(name)) is not None}
    middle = median_low(known.values()) if known else 1
    return {name: known.get(name, middle) for name in names}
