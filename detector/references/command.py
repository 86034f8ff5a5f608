"""`reluscope reference`: choose or look at what a model version is compared with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import click
from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.logging import configure
from agent.options import SECTION, Option, options
from detector.domain.settings import Target, Time
from detector.domain.slots import WEEKDAY_DATES, counted
from detector.domain.types import ModelVersion, Reference
from detector.ingestion import offline
from detector.references import choice as reference_choice
from detector.references.size import Need
from detector.store import Store, StoreError

WeekdayDates = Annotated[
    int,
    Field(
        ge=WEEKDAY_DATES,
        description="Dates that an hour of a weekday needs for a reference of its own; "
        "more than there are leave weekdays out.",
    ),
]


@dataclass(frozen=True, kw_only=True, config=SECTION)
class SpanSettings:
    """Every option of `reluscope reference set`."""

    target: Target
    start: Annotated[Time, Option("from", metavar="TIME")]
    """Start of the span, ISO 8601; UTC where no zone is given."""
    end: Annotated[Time, Option("to", metavar="TIME")]
    """End of the span."""
    need: Need
    weekday_dates: WeekdayDates = WEEKDAY_DATES


@dataclass(frozen=True, kw_only=True, config=SECTION)
class OfflineSettings:
    """Every option of `reluscope reference offline`."""

    target: Target
    need: Need


@dataclass(frozen=True, kw_only=True, config=SECTION)
class AutoSettings:
    """Every option of `reluscope reference auto`."""

    target: Target
    requests: int = Field(default=1000, ge=1)
    """Requests to take."""
    windows: int = Field(default=10, ge=1)
    """Windows to take at least."""
    source: Literal["first-requests", "previous-version"] = "first-requests"
    """This version's first requests, or the reference of the version before it."""
    need: Need
    weekday_dates: WeekdayDates = WEEKDAY_DATES


@click.group("reference", context_settings={"auto_envvar_prefix": "RELUSCOPE_REFERENCE"})
def command() -> None:
    """What a model version's windows are compared with."""
    configure("console")  # how far a long reading has come, on stderr


@command.command("set")
@options(SpanSettings)
def set_(settings: SpanSettings) -> None:
    """Take the windows inside a span of time as the reference."""
    s = settings
    with _session(s.target) as (store, found):
        _print([reference_choice.from_windows(store, found, s.start, s.end, s.need, s.weekday_dates)], found)


@command.command("offline")
@options(OfflineSettings)
@click.argument("file", type=click.Path(path_type=Path))
def offline_(settings: OfflineSettings, file: Path) -> None:
    """Take a calibration run as the reference: FILE holds window messages, each after its length as a varint."""
    with _session(settings.target) as (store, found):
        windows = offline.read(file, found, datetime.now(UTC))
        _print([reference_choice.from_offline(store, found, windows, settings.need)], found)


@command.command()
@options(AutoSettings)
def auto(settings: AutoSettings) -> None:
    """Make the reference anew from the first requests, or take over the previous version's."""
    s, now = settings, datetime.now(UTC)
    with _session(s.target) as (store, found):
        if s.source == "previous-version":
            made = reference_choice.from_previous(store, found, s.requests, now, s.windows)
        else:
            made = reference_choice.from_first_requests(
                store, found, s.requests, now, s.need, s.weekday_dates, s.windows
            )
        _print([made], found)


@command.command()
@options(Target)
def show(settings: Target) -> None:
    """List a version's references, the newest, which is in use, first."""
    with _session(settings) as (store, found):
        known = store.references(found.id)
        if not known:
            raise click.ClickException(f"{found.model}@{found.version} has no reference yet")
        _print(known, found)


@contextmanager
def _session(target: Target) -> Iterator[tuple[Store, ModelVersion]]:
    """The store and the version asked for; what goes wrong becomes one clear line and exit code 1."""
    try:
        store = Store(target.database.url)
        try:
            found = store.model_version(target.model, target.version)
            if found is None:
                name = target.model if target.version is None else f"{target.model}@{target.version}"
                raise click.ClickException(f"{name} is unknown: no agent has reported it")
            yield store, found
        finally:
            store.close()
    except (StoreError, reference_choice.NoReference, offline.OfflineError) as error:
        raise click.ClickException(str(error)) from error


_COLUMNS = ("id", "in use", "origin", "from version", "start", "end", "requests", "slots", "made at")


def _print(known: Sequence[Reference], version: ModelVersion) -> None:
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
