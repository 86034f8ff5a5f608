"""`reluscope inspect`: what would be observed in a model, what not and why, and what it would cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from agent.instrument import Instrumented, InstrumentError, instrument, open_model
from agent.replay import Replayer, ReplayError, output_types
from agent.wire import Probe


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--load/--no-load", default=True, help="Also load the instrumented model, as the agent would.")
def command(model: Path, as_json: bool, load: bool) -> None:
    """Print the probes of an ONNX MODEL, what is not probed and why, and the estimated cost."""
    try:
        instrumented = instrument(open_model(model), output_types)
        if load:
            Replayer(instrumented, threads=1, gpu_mem_limit=1, provider="cpu")
    except (InstrumentError, ReplayError) as error:
        if as_json:
            click.echo(json.dumps({"error": str(error)}))
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(as_document(instrumented), indent=2) if as_json else as_table(instrumented))


def as_document(instrumented: Instrumented) -> dict[str, Any]:
    """The probes and the cost, ready for JSON; null for what free extents leave open."""
    cost = instrumented.cost
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
                "elements_per_request": cost.elements[probe.name],
                "pooling_bytes_per_request": cost.pooling_bytes(probe.name),
                "fetched_bytes_per_request": cost.fetched_bytes(probe.name, probe.channels),
            }
            for probe in instrumented.probes
        ],
        "not_probed": [{"name": item.name, "op": item.op, "reason": item.reason} for item in instrumented.not_probed],
        "inputs": dict(instrumented.batch_axes),
        "cost": {
            "operations_per_request": cost.operations if cost.complete else None,
            "estimated_ratio": None if cost.ratio is None else round(cost.ratio, 3),
        },
    }


def as_table(instrumented: Instrumented) -> str:
    """The probes and the cost as aligned text."""
    rows: list[tuple[str, ...]] = [("LAYER", "OP", "CHANNELS", "AXIS", "POOLED", "TENSOR")]
    rows += [_row(instrumented, probe) for probe in instrumented.probes]
    channels = sum(probe.channels or 0 for probe in instrumented.probes)
    lines = [*_aligned(rows), "", f"{len(instrumented.probes)} probes, {channels} channels", *_cost(instrumented)]
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
    elements = instrumented.cost.elements[probe.name]
    pooled = "?" if elements is None else "-" if instrumented.cost.dense[probe.name] else _bytes(4 * elements)
    return probe.name, probe.op, str(probe.channels or "?"), str(probe.axis), pooled, probe.tensor


def _cost(instrumented: Instrumented) -> list[str]:
    cost = instrumented.cost
    fetched = [cost.fetched_bytes(probe.name, probe.channels) for probe in instrumented.probes]
    lines = []
    if None not in fetched:
        total = sum(count for count in fetched if count is not None)
        whole = sum(4 * (count or 0) for count in cost.elements.values())
        share = f", {total / whole:.1%} of the probed tensors" if None not in cost.elements.values() and whole else ""
        lines.append(f"{_bytes(total)} leave the device per request{share}")
    if cost.complete and cost.operations == 0:
        lines.append("estimated cost: not known, for the model has no convolution or matrix product to compare with")
    elif cost.ratio is None:
        lines.append("estimated cost: not known before the first request, for some extents are free")
    else:
        lines.append(
            f"estimated cost: {cost.ratio - 1:+.0%} time on CPU with all probes in every batch; "
            "the agent measures it when it loads the model"
        )
    return lines


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
