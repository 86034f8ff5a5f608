"""Opens what runs beside a served model: bounded, checked against it, and matched with its probes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.instrument import InstrumentError, ModelFile, instrument, open_model
from agent.instrument.whole import WholeGraph
from agent.paired.baselines import Baseline
from agent.paired.errors import PairedError
from agent.paired.matching import Pair, Unmatched, match
from agent.paired.settings import PairedSettings
from agent.paired.side import Side
from agent.replay import Device, output_types
from agent.serving.models import Served
from agent.serving.repository import digest


@dataclass(frozen=True, slots=True)
class Opened:
    """A baseline's side, its digest, and which of its tensors are compared with which probes."""

    side: Side
    digest: str
    pairs: tuple[Pair, ...]
    unmatched: tuple[Unmatched, ...]


def open_bounded(path: Path, most_bytes: int) -> ModelFile:
    """A model file that has, with its weights, no more bytes than ``most_bytes``; raises PairedError where it has."""
    file = open_model(path)
    size = sum(part.stat().st_size for part in (path, *file.external_files))
    if size > most_bytes:
        message = f"{path} has {size} bytes, more than --paired-model-mib allows ({most_bytes})"
        raise PairedError("baseline_unusable", message)
    return file


def open_baseline(served: Served, graph: WholeGraph, baseline: Baseline, settings: PairedSettings) -> Opened:
    """A baseline's side, matched with the served model, whose graph is ``graph``.

    Raises PairedError, InstrumentError, ReplayError or OSError where its file cannot be used.
    """
    same = baseline.path == served.entry.path
    file = open_bounded(baseline.path, settings.model_bytes)
    checksum = served.digest if same else digest(baseline.path, file.external_files)
    device = settings.device.on_cpu() if baseline.cpu_only else served_device(settings, baseline)
    side = Side(baseline.path, checksum, device)
    if same:
        other, probes = graph, served.instrumented.probes
    else:
        other = WholeGraph(file)
        try:
            probes = instrument(file, output_types).probes
        except InstrumentError:  # no rectifiers that it knows: tensors still match by their names
            probes = ()
    if set(other.inputs) != set(graph.inputs):
        raise PairedError(
            "baseline_unusable",
            f"{baseline.path} has inputs {sorted(other.inputs)}, the served model {sorted(graph.inputs)}",
        )
    pairs, unmatched = match(served.instrumented.probes, graph, probes, other)
    if not pairs:
        raise PairedError("baseline_unusable", f"{baseline.path}: none of its tensors matches a probe")
    return Opened(side, checksum, pairs, unmatched)


def served_device(settings: PairedSettings, baseline: Baseline | None) -> Device:
    """Where the served side runs; it shares the memory limit with a baseline that runs there too."""
    return settings.device if baseline is None or baseline.cpu_only else settings.device.sharing(2)
