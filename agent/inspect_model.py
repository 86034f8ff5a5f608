"""`reluscope inspect`: what would be observed in a model, what not and why, and what it costs here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from pydantic.dataclasses import dataclass

from agent.capture.calibration import Calibration, calibrate
from agent.capture.settings import CaptureSettings
from agent.instrument import Instrumented, InstrumentError, instrument, open_model
from agent.logging import configure
from agent.options import SECTION, options
from agent.replay import Device, Replayer, ReplayError, output_types
from agent.wire import Probe


@dataclass(frozen=True, kw_only=True, config=SECTION)
class InspectSettings:
    """Where a model is timed, if it is."""

    time: bool = False
    """Time the model with its probes on this machine, as the agent does when it loads it: ten seconds."""
    device: Device


@click.command("inspect", context_settings={"auto_envvar_prefix": "RELUSCOPE_INSPECT"})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--load/--no-load", default=True, help="Also load the instrumented model, as the agent would.")
@options(InspectSettings)
def command(settings: InspectSettings, model: Path, as_json: bool, load: bool) -> None:
    """Print the probes of an ONNX MODEL, what is not probed and why, and with --time what observing them costs."""
    configure("console")
    device = settings.device
    try:
        instrumented = instrument(open_model(model), output_types)
        if load:
            Replayer(instrumented, threads=1, gpu_mem_limit=1, provider="cpu")
        timed = None
        if settings.time:
            capture = CaptureSettings(device)
            timed = calibrate(instrumented, capture, lambda part: Replayer.on(device, part), lambda: False)
    except (InstrumentError, ReplayError) as error:
        if as_json:
            click.echo(json.dumps({"error": str(error)}))
        raise click.ClickException(str(error)) from error
    document = json.dumps(as_document(instrumented, timed), indent=2)
    click.echo(document if as_json else as_table(instrumented, timed))


def as_document(instrumented: Instrumented, timed: Calibration | None = None) -> dict[str, Any]:
    """The probes and what they cost, ready for JSON; null for what free extents leave open or was not timed."""
    sizes = instrumented.sizes
    return {
        "probes": [
            {
                "name": probe.name,
                "kind": probe.kind,
                "op": probe.op,
                "tensor": probe.tensor,
                "channels": probe.channels,
                "axis": probe.axis,
                "exact_zero": probe.exact_zero,
                "elements_per_request": sizes.elements[probe.name],
                "fetched_bytes_per_request": sizes.fetched_bytes(probe.name, probe.channels),
            }
            for probe in instrumented.probes
        ],
        "not_probed": [{"name": item.name, "op": item.op, "reason": item.reason} for item in instrumented.not_probed],
        "inputs": dict(instrumented.batch_axes),
        "timed": None
        if timed is None
        else {"ratio": timed.ratio, "groups": len(timed.groups), "within_budget": timed.within},
    }


def as_table(instrumented: Instrumented, timed: Calibration | None = None) -> str:
    """The probes and what they cost as aligned text."""
    rows: list[tuple[str, ...]] = [("LAYER", "OP", "CHANNELS", "AXIS", "POOLED", "TENSOR")]
    rows += [_row(instrumented, probe) for probe in instrumented.probes]
    channels = sum(probe.channels or 0 for probe in instrumented.probes)
    lines = [*_aligned(rows), "", f"{len(instrumented.probes)} probes, {channels} channels", *_fetched(instrumented)]
    lines.append(_cost(timed))
    behind = {name: axis for name, axis in instrumented.batch_axes.items() if axis}
    if behind:
        lines.append(f"requests are not in front: {', '.join(f'{name} axis {axis}' for name, axis in behind.items())}")
    shared = [name for name, axis in instrumented.batch_axes.items() if axis is None]
    if shared:
        lines.append(f"inputs that all requests of a batch share: {', '.join(shared)}")
    if instrumented.not_probed:
        left_out = [("NOT PROBED", "OP", "REASON")]
        left_out += [(item.name, item.op, item.reason) for item in instrumented.not_probed]
        lines += ["", *_aligned(left_out)]
    return "\n".join(lines)


def _row(instrumented: Instrumented, probe: Probe) -> tuple[str, ...]:
    elements = instrumented.sizes.elements[probe.name]
    pooled = "?" if elements is None else "-" if instrumented.sizes.dense[probe.name] else _bytes(4 * elements)
    return probe.name, probe.op, str(probe.channels or "?"), str(probe.axis), pooled, probe.tensor


def _fetched(instrumented: Instrumented) -> list[str]:
    sizes = instrumented.sizes
    fetched = [sizes.fetched_bytes(probe.name, probe.channels) for probe in instrumented.probes]
    if None in fetched:
        return []
    total = sum(count for count in fetched if count is not None)
    whole = sum(4 * (count or 0) for count in sizes.elements.values())
    share = f", {total / whole:.1%} of the probed tensors" if None not in sizes.elements.values() and whole else ""
    return [f"{_bytes(total)} leave the device per request{share}"]


def _cost(timed: Calibration | None) -> str:
    if timed is None:
        return "what observing them costs is timed when the agent loads the model, and here with --time"
    if timed.ratio is None:
        return "what observing them costs could not be timed: see the log above"
    count = len(timed.groups)
    turns = f"in {count} groups that take turns" if count > 1 else "with all probes in every batch"
    return f"timed here: {timed.ratio - 1:+.1%} time, {turns}{'' if timed.within else ', more than the budget'}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
