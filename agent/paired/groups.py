"""Which tensors are fetched together, so that the activations held at a time stay below a limit. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.paired.matching import Pair


@dataclass(frozen=True, slots=True)
class FetchGroup:
    """Pairs that one run fetches, with the outputs, and how many requests may run at a time."""

    pairs: tuple[Pair, ...]
    requests: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All groups, and the probes of which not even one request fits the limit."""

    groups: tuple[FetchGroup, ...]
    too_large: tuple[str, ...]


def plan(pairs: Sequence[Pair], outputs: Sequence[str], sizes: Mapping[str, int], limit: int, max_batch: int) -> Plan:
    """Groups in graph order.

    Args:
        pairs: what is compared.
        outputs: tensors of the served model that every group fetches.
        sizes: bytes per request of the served side's tensors. A tensor that is not there is fetched apart.
        limit: bytes of both sides together.
        max_batch: most requests at a time.
    """
    always = [pair for pair in pairs if pair.probe.tensor in outputs]
    base = sum(2 * sizes.get(pair.probe.tensor, 0) for pair in always)
    groups: list[tuple[list[Pair], int]] = []
    too_large = []
    apart = []
    for pair in pairs:
        size = sizes.get(pair.probe.tensor)
        if pair.probe.tensor in outputs:
            continue
        if size is None:
            apart.append(FetchGroup((*always, pair), 1))
        elif base + 2 * size > limit:
            too_large.append(pair.probe.name)
        elif groups and groups[-1][1] + 2 * size <= limit:
            groups[-1] = ([*groups[-1][0], pair], groups[-1][1] + 2 * size)
        else:
            groups.append(([*always, pair], base + 2 * size))
    if not groups and not apart:
        groups.append((always, base))
    known = [FetchGroup(tuple(members), max(1, min(max_batch, limit // max(size, 1)))) for members, size in groups]
    return Plan((*known, *apart), tuple(too_large))
