"""`reluscope inspect`: what would be observed in a model, and what not and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from agent.instrument import Instrumented, InstrumentError, instrument, load


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(model: Path, as_json: bool) -> None:
    """Print the probes of an ONNX MODEL, and what is not probed and why."""
    try:
        instrumented = instrument(load(model))
    except InstrumentError as error:
        raise click.ClickException(str(error)) from error
    click.echo(as_document(instrumented) if as_json else as_table(instrumented))


def as_document(instrumented: Instrumented) -> str:
    """The probes as JSON."""
    probes = [
        {"name": probe.name, "op": probe.op, "tensor": probe.tensor, "channels": probe.channels, "axis": probe.axis}
        for probe in instrumented.probes
    ]
    left_out = [{"name": item.name, "op": item.op, "reason": item.reason} for item in instrumented.not_probed]
    return json.dumps({"probes": probes, "not_probed": left_out}, indent=2)


def as_table(instrumented: Instrumented) -> str:
    """The probes as aligned text."""
    rows = [("LAYER", "OP", "CHANNELS", "AXIS", "TENSOR")]
    rows += [
        (probe.name, probe.op, str(probe.channels or "?"), str(probe.axis), probe.tensor)
        for probe in instrumented.probes
    ]
    channels = sum(probe.channels or 0 for probe in instrumented.probes)
    lines = [*_aligned(rows), "", f"{len(instrumented.probes)} probes, {channels} channels"]
    if instrumented.not_probed:
        left_out = [("NOT PROBED", "OP", "REASON")]
        left_out += [(item.name, item.op, item.reason) for item in instrumented.not_probed]
        lines += ["", *_aligned(left_out)]
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
