"""Protobuf encoding of comparisons. Decoding checks everything that merging and storing rely on.

Sums that are not finite cost their probe only: it has no elements then, and its requests count as not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.wire import reluscope_pb2 as pb
from agent.wire.comparison import COUNTS
from agent.wire.fields import MAX_CHANNELS, MAX_COUNT, WireError, extend, integers, probe_in, probe_out
from agent.wire.messages import BaselineKind, Comparison, ProbeComparison

_KINDS: dict[BaselineKind, pb.BaselineKind.ValueType] = {
    "reference_model": pb.REFERENCE_MODEL,
    "cpu_provider": pb.CPU_PROVIDER,
    "served_response": pb.SERVED_RESPONSE,
    "holdout": pb.HOLDOUT,
}
_KIND_NAMES: dict[int, BaselineKind] = {number: kind for kind, number in _KINDS.items()}
_PART_OF = (
    ("top1_n", "n"),
    ("top1_agree", "top1_n"),
    ("accuracy_n", "n"),
    ("served_correct", "accuracy_n"),
    ("baseline_n", "accuracy_n"),
    ("baseline_correct", "baseline_n"),
    ("only_served_correct", "served_correct"),
    ("only_baseline_correct", "baseline_correct"),
    ("mismatched", "n"),
)
"""Pairs (count, what it is a part of)."""
_SUMS = ("signal", "power", "noise", "cross", "max_abs_error")


def estimated_comparison_size(item: ProbeComparison) -> int:
    """About how many bytes a probe takes in a message, without encoding it; seldom below the true size."""
    return 200 + len(item.probe.name) + len(item.probe.tensor) + 6 * len(item.only_served_active)


def comparison_out(body: Comparison) -> pb.Comparison:
    """The message of a comparison."""
    return pb.Comparison(
        start_unix_ms=body.start_ms,
        end_unix_ms=body.end_ms,
        kind=_KINDS[body.kind],
        baseline=body.baseline,
        baseline_digest=body.baseline_digest,
        provider=body.provider,
        reference=body.reference,
        probes=[_probe_comparison_out(item) for item in body.probes],
        **{name: getattr(body, name) for name in COUNTS},
    )


def comparison_in(message: pb.Comparison) -> Comparison:
    """The inverse of `comparison_out`; raises WireError where the message is damaged or cannot be true."""
    if not 0 < message.start_unix_ms < message.end_unix_ms:
        raise WireError(f"comparison [{message.start_unix_ms}, {message.end_unix_ms}) ms is no span of time")
    kind = _KIND_NAMES.get(message.kind)
    if kind is None:
        raise WireError(f"the comparison's kind {message.kind} is unknown")
    if not message.baseline:
        raise WireError("the comparison's baseline is empty")
    if message.reference and kind != "holdout":
        raise WireError(f"a comparison of kind {kind} names a reference beside its baseline")
    counts = {name: int(getattr(message, name)) for name in COUNTS}
    for part, whole in _PART_OF:
        if counts[part] > counts[whole]:
            raise WireError(f"the comparison's {part} {counts[part]} exceeds its {whole} {counts[whole]}")
    if kind == "holdout" and counts["baseline_n"] and not message.reference:
        raise WireError("the comparison has a baseline_n, but its reference is empty")
    if counts["n"] > MAX_COUNT:
        raise WireError("a count exceeds 63 bits")
    if counts["only_served_correct"] + counts["only_baseline_correct"] > counts["baseline_n"]:
        raise WireError("the comparison's discordant pairs exceed its baseline_n")
    probes = tuple(_probe_comparison_in(item) for item in message.probes)
    names = [item.probe.name for item in probes]
    if len(set(names)) < len(names):
        raise WireError("the comparison has two probes of one name")
    return Comparison(
        start_ms=message.start_unix_ms,
        end_ms=message.end_unix_ms,
        kind=kind,
        baseline=message.baseline,
        baseline_digest=message.baseline_digest,
        provider=message.provider,
        probes=probes,
        reference=message.reference,
        **counts,
    )


def _probe_comparison_out(item: ProbeComparison) -> pb.ProbeComparison:
    message = pb.ProbeComparison(
        probe=probe_out(item.probe),
        n=item.n,
        elements=item.elements,
        signal=item.signal,
        power=item.power,
        noise=item.noise,
        cross=item.cross,
        max_abs_error=item.max_abs_error,
        mismatched=item.mismatched,
        nonfinite=item.nonfinite,
    )
    extend(message.only_served_active, item.only_served_active)
    extend(message.only_baseline_active, item.only_baseline_active)
    return message


def _probe_comparison_in(message: pb.ProbeComparison) -> ProbeComparison:
    probe = probe_in(message.probe)
    if message.n > MAX_COUNT or message.elements > MAX_COUNT:
        raise WireError("a count exceeds 63 bits")
    for name in ("mismatched", "nonfinite"):
        if getattr(message, name) > message.n:
            raise WireError(f"probe {probe.name}: {name} {getattr(message, name)} exceeds its {message.n} requests")
    sums: dict[str, Any] = {name: float(getattr(message, name)) for name in _SUMS}
    for name, value in sums.items():
        if value < 0 and name != "cross" and math.isfinite(value):
            raise WireError(f"probe {probe.name}: {name} is negative")
    usable = all(map(math.isfinite, sums.values()))
    served = _channels_in(probe.name, message.only_served_active)
    baseline = _channels_in(probe.name, message.only_baseline_active)
    if len(served) != len(baseline):
        raise WireError(f"probe {probe.name}: {len(served)} and {len(baseline)} channels on the two sides")
    if probe.channels is not None and len(served) not in (0, probe.channels):
        raise WireError(f"probe {probe.name}: counts for {len(served)} of {probe.channels} channels")
    # Each request is in one of the two at most. Compared without the sum, which could overflow.
    if ((served > message.n) | (baseline > message.n - served)).any():
        raise WireError(f"probe {probe.name}: a channel counts more requests than the probe's {message.n}")
    return ProbeComparison(
        probe=probe,
        n=message.n,
        elements=message.elements if usable else 0,
        **(sums if usable else dict.fromkeys(_SUMS, 0.0)),
        mismatched=message.mismatched,
        nonfinite=message.nonfinite if usable else message.n,
        only_served_active=served,
        only_baseline_active=baseline,
    )


def _channels_in(name: str, values: Sequence[int]) -> NDArray[np.int64]:
    if len(values) > MAX_CHANNELS:
        raise WireError(f"probe {name}: {len(values)} channels")
    return integers(values)
