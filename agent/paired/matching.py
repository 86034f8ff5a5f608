"""Which tensor of the baseline model stands against which probe of the served model. Pure, names only.

Tried in this order: the baseline's probe of the same name; its tensor of the same name; its tensor whose name is the
same but for what onnxruntime's quantizers append. Where the tensor so found is what the baseline's rectifier reads, the
rectifier's output is meant: a quantizer has dropped the Relu and kept the name of the convolution's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from agent import wire
from agent.instrument import stem


class NamedTensors(Protocol):
    """What matching has to know of a model's graph."""

    @property
    def tensors(self) -> frozenset[str]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    def only_reader_output(self, tensor: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """A probe of the served model, and the baseline's tensor to compare it with."""

    probe: wire.Probe
    baseline_tensor: str


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A probe of the served model that is not compared, and why."""

    probe: str
    reason: str


def match(
    probes: Sequence[wire.Probe], served: NamedTensors, baseline_probes: Sequence[wire.Probe], baseline: NamedTensors
) -> tuple[tuple[Pair, ...], tuple[Unmatched, ...]]:
    """Pairs in graph order, for every activation and float output of the served model; and what has no partner.

    Inputs are left aside: both sides get the same.
    """
    pairs: list[Pair] = []
    unmatched: list[Unmatched] = []
    find = _finder(baseline_probes, baseline)
    for probe in compared_probes(probes, served.outputs):
        if probe.tensor not in served.tensors:
            unmatched.append(Unmatched(probe.name, "its tensor is not in the top-level graph"))
            continue
        tensor = _output_at_the_same_place(probe, served, baseline) if probe.kind == "output" else None
        tensor = find(probe) or tensor
        if tensor is None:
            unmatched.append(Unmatched(probe.name, "the baseline has no probe or tensor of its name"))
            continue
        other = next((item for item in baseline_probes if item.tensor == tensor), None)
        if other is not None and None not in (probe.channels, other.channels) and probe.channels != other.channels:
            unmatched.append(Unmatched(probe.name, f"{probe.channels} channels, the baseline's has {other.channels}"))
            continue
        pairs.append(Pair(probe, tensor))
    return tuple(pairs), tuple(unmatched)


def compared_probes(probes: Sequence[wire.Probe], outputs: Sequence[str]) -> Iterator[wire.Probe]:
    """The probes that are compared: activations and outputs, and a probe for each float output that has none.

    Outputs without a probe have no channels; position 0 of their axis says so.
    """
    yield from (probe for probe in probes if probe.kind != "input")
    probed = {probe.tensor for probe in probes if probe.kind != "input"}
    names = {probe.name for probe in probes}
    for place, name in enumerate(output for output in outputs if output not in probed):
        unique = name if name not in names else f"{name}:output"
        yield wire.Probe(unique, "Output", name, None, 0, "output", len(probes) + place, False)


def with_channels(probe: wire.Probe, shape: Sequence[int]) -> wire.Probe:
    """The probe with the number of channels that the tensor turned out to have."""
    has_axis = 0 < probe.axis < len(shape)
    return replace(probe, channels=shape[probe.axis] if has_axis else None)


def _finder(probes: Sequence[wire.Probe], baseline: NamedTensors) -> Callable[[wire.Probe], str | None]:
    by_name = {item.name: item.tensor for item in probes if item.kind != "input" and item.tensor in baseline.tensors}
    activations = {item.tensor for item in probes if item.kind == "activation"}
    by_stem: dict[str, str] = {}
    for tensor in sorted(baseline.tensors, key=lambda name: (-len(name), name)):  # the shortest wins
        by_stem[stem(tensor)] = tensor

    def find(probe: wire.Probe) -> str | None:
        if probe.name in by_name:
            return by_name[probe.name]
        tensor = probe.tensor if probe.tensor in baseline.tensors else by_stem.get(stem(probe.tensor))
        if tensor is None or probe.kind != "activation" or tensor in activations:
            return tensor
        following = baseline.only_reader_output(tensor)
        return following if following in activations else tensor

    return find


def _output_at_the_same_place(probe: wire.Probe, served: NamedTensors, baseline: NamedTensors) -> str | None:
    """Exporters number tensors afresh for every version, but keep the order of the outputs."""
    if len(served.outputs) != len(baseline.outputs) or probe.tensor not in served.outputs:
        return None
    return baseline.outputs[served.outputs.index(probe.tensor)]
