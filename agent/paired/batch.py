"""One batch of requests on both sides to a comparison. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent import wire
from agent.paired.matching import Pair, with_channels
from agent.paired.sums import Flags, Tolerance, compare, top1

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Values of the same requests, by tensor name of each side's model, with the requests on the first axis."""

    requests: int
    served: Arrays
    baseline: Arrays | None
    """None where the served side runs alone, against labels."""
    labels: NDArray[np.int64] | None = None
    """Shape (requests,)."""
    moved: Mapping[str, int] = field(default_factory=dict)
    """The axis that the requests of a served tensor were on, where it was not the first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A comparison, and the probes whose values did not fit together: (probe, why)."""

    comparison: wire.Comparison
    misfits: tuple[tuple[str, str], ...]
    classes: int = 0
    """Of the served model's class output; 0 where it has none."""


def compare_batch(
    blank: wire.Comparison,
    pairs: Sequence[Pair],
    outputs: Sequence[str],
    batch: Batch,
    tolerance: Tolerance | None,
) -> Outcome:
    """Compares one batch.

    Args:
        blank: window, kind and baseline of the result.
        pairs: what is compared; of these, only pairs whose tensors are in the batch.
        outputs: the served model's float outputs in order, for its class output.
        batch: the values.
        tolerance: as for `agent.paired.sums.compare`.
    """
    items, misfits = [], []
    mismatched: Flags = np.zeros(batch.requests, np.bool_)
    for pair in pairs:
        served = batch.served.get(pair.probe.tensor)
        baseline = (batch.baseline or {}).get(pair.baseline_tensor)
        if served is None or baseline is None:
            continue
        probe = _with_requests_first(pair.probe, batch.moved.get(pair.probe.tensor, 0))
        if batch.requests == 1 and served.ndim and len(served) != 1:
            # Tokens in rows, or time first: all of the tensor is the one request's.
            probe = probe if _is_whole(probe) else replace(probe, axis=probe.axis + 1)
            served, baseline = served[np.newaxis], baseline[np.newaxis]
        if served.shape != baseline.shape or served.ndim == 0 or len(served) != batch.requests or served.size == 0:
            misfits.append((probe.name, _misfit(served.shape, baseline.shape, batch.requests)))
            continue
        compared = compare(with_channels(probe, served.shape), served, baseline, tolerance)
        moved = replace(compared.sums.probe, axis=pair.probe.axis) if pair.probe.tensor in batch.moved else None
        items.append(compared.sums if moved is None else replace(compared.sums, probe=moved))
        if probe.tensor in outputs:
            mismatched |= compared.mismatched
    comparison = replace(blank, n=batch.requests, mismatched=int(mismatched.sum()), probes=tuple(items))
    name = class_output(outputs, batch)
    if name is None:
        return Outcome(comparison, tuple(misfits))
    classes = batch.served[name].shape[1]
    return Outcome(_with_classes(comparison, pairs, name, batch), tuple(misfits), classes)


def _with_requests_first(probe: wire.Probe, moved: int) -> wire.Probe:
    """The probe of a tensor whose axis ``moved`` was put in front."""
    if not moved or probe.axis > moved or _is_whole(probe):
        return probe
    return replace(probe, axis=0 if probe.axis == moved else probe.axis + 1)  # 0: no channels


def _is_whole(probe: wire.Probe) -> bool:
    """Whether all of a request is one channel, as where a sequence has a score for each token: no axis has channels."""
    return probe.axis == 0 and probe.channels == 1


def _misfit(served: Sequence[int], baseline: Sequence[int], requests: int) -> str:
    """Why two tensors are not compared."""
    if tuple(served) != tuple(baseline):
        return f"shape {list(served)} when served, {list(baseline)} in the baseline"
    if not served:
        return "a single number says nothing of one request"
    if 0 in served:
        return f"shape {list(served)} has nothing to compare"
    return f"shape {list(served)} has no axis of the {requests} requests: it is compared for requests that come alone"


def class_output(outputs: Sequence[str], batch: Batch) -> str | None:
    """The output whose largest element is the class: the last float output of rank 2 with two columns or more."""
    arrays = {name: batch.served[name] for name in outputs if name in batch.served}
    shaped = [name for name, value in arrays.items() if value.ndim == 2 and value.shape[1] >= 2]
    return next((name for name in reversed(shaped) if len(arrays[name]) == batch.requests), None)


def _with_classes(comparison: wire.Comparison, pairs: Sequence[Pair], name: str, batch: Batch) -> wire.Comparison:
    """The comparison with top-1 agreement at the class output ``name``, and with accuracy where there are labels."""
    labels = batch.labels
    served, served_has = top1(batch.served[name])
    right = served_has & (served == labels) if labels is not None else None
    if right is not None:
        comparison = replace(comparison, accuracy_n=batch.requests, served_correct=int(right.sum()))
    partner = next((pair.baseline_tensor for pair in pairs if pair.probe.tensor == name), None)
    scores = None if batch.baseline is None or partner is None else batch.baseline.get(partner)
    if scores is None or scores.shape != batch.served[name].shape:
        return comparison
    baseline, baseline_has = top1(scores)
    both = served_has & baseline_has
    comparison = replace(comparison, top1_n=int(both.sum()), top1_agree=int((both & (served == baseline)).sum()))
    if right is None:
        return comparison
    right_baseline = baseline_has & (baseline == labels)
    return replace(
        comparison,
        baseline_n=batch.requests,
        baseline_correct=int(right_baseline.sum()),
        only_served_correct=int((right & ~right_baseline).sum()),
        only_baseline_correct=int((right_baseline & ~right).sum()),
    )
