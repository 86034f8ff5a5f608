"""`reluscope reference`: choose or look at what a model version is compared with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from agent.logging import configure
from detector.domain.slots import WEEKDAY_DATES, counted
from detector.domain.types import ModelVersion, Reference
from detector.ingestion import offline
from detector.references import choice as reference_choice
from detector.references.size import Need
from detector.store import Store, StoreError

_database = click.option(
    "--database-url",
    envvar="RELUSCOPE_DATABASE_URL",
    required=True,
    help="postgresql+psycopg://user:password@host:port/database",
)
_model = click.option("--model", required=True, help="Model name.")
_version = click.option("--version", default=None, help="Model version; the newest if left out.")


_effect = click.option(
    "--effect",
    default=0.3,
    show_default=True,
    help="Smallest shift, Cohen's omega, that it must let show.",
)
_tolerated = click.option("--min-effect", default=0.1, show_default=True, help="The detector's --min-effect.")
_weekday_dates = click.option(
    "--weekday-dates",
    default=WEEKDAY_DATES,
    show_default=True,
    type=click.IntRange(min=WEEKDAY_DATES),
    help="Dates that an hour of a weekday needs for a reference of its own; more than there are leave weekdays out.",
)


@click.group("reference", context_settings={"auto_envvar_prefix": "RELUSCOPE_REFERENCE"})
def command() -> None:
    """What a model version's windows are compared with."""
    configure("console")  # how far a long reading has come, on stderr


@command.command("set")
@_database
@_model
@_version
@click.option("--from", "start", required=True, help="Start of the span, ISO 8601; UTC where no zone is given.")
@click.option("--to", "end", required=True, help="End of the span.")
@_effect
@_tolerated
@_weekday_dates
def set_(
    database_url: str,
    model: str,
    version: str | None,
    start: str,
    end: str,
    effect: float,
    min_effect: float,
    weekday_dates: int,
) -> None:
    """Take the windows inside a span of time as the reference."""
    need = _need(effect, min_effect)
    with _session(database_url, model, version) as (store, found):
        made = reference_choice.from_windows(store, found, _time(start), _time(end), need, weekday_dates)
        _print([made], found)


@command.command("offline")
@_database
@_model
@_version
@click.argument("file", type=click.Path(path_type=Path))
@_effect
@_tolerated
def offline_(database_url: str, model: str, version: str | None, file: Path, effect: float, min_effect: float) -> None:
    """Take a calibration run as the reference: FILE holds window messages, each after its length as a varint."""
    need = _need(effect, min_effect)
    with _session(database_url, model, version) as (store, found):
        windows = offline.read(file, found, datetime.now(UTC))
        _print([reference_choice.from_offline(store, found, windows, need)], found)


@command.command()
@_database
@_model
@_version
@click.option("--requests", default=1000, show_default=True, type=click.IntRange(min=1), help="Requests to take.")
@click.option("--windows", default=10, show_default=True, type=click.IntRange(min=1), help="Windows to take at least.")
@click.option(
    "--source",
    type=click.Choice(["first-requests", "previous-version"]),
    default="first-requests",
    show_default=True,
    help="This version's first requests, or the reference of the version before it.",
)
@_effect
@_tolerated
@_weekday_dates
def auto(
    database_url: str,
    model: str,
    version: str | None,
    requests: int,
    windows: int,
    source: str,
    effect: float,
    min_effect: float,
    weekday_dates: int,
) -> None:
    """Make the reference anew from the first requests, or take over the previous version's."""
    need, now = _need(effect, min_effect), datetime.now(UTC)
    with _session(database_url, model, version) as (store, found):
        if source == "previous-version":
            made = reference_choice.from_previous(store, found, requests, now, windows)
        else:
            made = reference_choice.from_first_requests(store, found, requests, now, need, weekday_dates, windows)
        _print([made], found)


@command.command()
@_database
@_model
@_version
def show(database_url: str, model: str, version: str | None) -> None:
    """List a version's references, the newest, which is in use, first."""
    with _session(database_url, model, version) as (store, found):
        known = store.references(found.id)
        if not known:
            raise click.ClickException(f"{found.model}@{found.version} has no reference yet")
        _print(known, found)


@contextmanager
def _session(database_url: str, model: str, version: str | None) -> Iterator[tuple[Store, ModelVersion]]:
    """The store and the version asked for; what goes wrong becomes one clear line and exit code 1."""
    try:
        store = Store(database_url)
        try:
            found = store.model_version(model, version)
            if found is None:
                name = model if version is None else f"{model}@{version}"
                raise click.ClickException(f"{name} is unknown: no agent has reported it")
            yield store, found
        finally:
            store.close()
    except (StoreError, reference_choice.NoReference, offline.OfflineError) as error:
        raise click.ClickException(str(error)) from error


def _need(effect: float, min_effect: float) -> Need:
    try:
        return Need(effect, min_effect)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _time(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no ISO 8601 time, such as 2026-01-31T12:00:00Z") from error
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


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
