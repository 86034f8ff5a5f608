"""References and policies as the command shows them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from detector.domain.slots import counted
from detector.domain.types import ModelVersion, Reference, ReferencePolicy


def print_policy(model: str, chosen: ReferencePolicy) -> None:
    """The policy in force, and whose it is."""
    what = f"{chosen.policy} {chosen.reference_id}" if chosen.reference_id is not None else chosen.policy
    since = "" if chosen.at is None else f", by {chosen.by} at {chosen.at.isoformat(timespec='seconds')}"
    click.echo(f"Policy of {model}: {what}{since}{f': {chosen.why}' if chosen.why else ''}")


_COLUMNS = ("id", "in use", "origin", "from version", "start", "end", "requests", "slots", "made at", "by", "why")


def print_references(known: Sequence[Reference], version: ModelVersion) -> None:
    """A table, the newest, which is in use, first; with colours on a terminal."""
    rows = [
        (
            str(one.id),
            "yes" if place == 0 else "no",
            one.origin,
            "this" if one.source_version_id == version.id else f"id {one.source_version_id}",
            one.start.isoformat(timespec="seconds"),
            one.end.isoformat(timespec="seconds"),
            str(one.n),
            counted(one.slots),
            one.created_at.isoformat(timespec="seconds"),
            "detector" if one.decision is None else one.decision.by,
            "" if one.decision is None else one.decision.why,
        )
        for place, one in enumerate(known)
    ]
    title = f"References of {version.model}@{version.version}"
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and _print_rich(title, rows):
        return
    click.echo(title)
    widths = [max(len(row[i]) for row in (_COLUMNS, *rows)) for i in range(len(_COLUMNS))]
    for row in (_COLUMNS, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_rich(title: str, rows: Sequence[tuple[str, ...]]) -> bool:
    """A table with colours; False where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table(*_COLUMNS, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return True
