"""`reluscope reference`: choose or look at what a model version is compared with."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from agent.logging import configure
from detector.domain.slots import WEEKDAY_DATES
from detector.domain.types import Decision, ModelVersion, Policy, Reference
from detector.ingestion import offline
from detector.references import choice, decisions, making
from detector.references.listing import print_policy, print_references
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


def _person() -> str:
    """Who runs the command, as far as this machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


_by = click.option("--by", default=_person, show_default="your user name", help="Who decides; kept for the postmortem.")
_why = click.option("--why", default="", help="Why; kept for the postmortem.")


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
@_why
@_by
def set_(
    database_url: str,
    model: str,
    version: str | None,
    start: str,
    end: str,
    effect: float,
    min_effect: float,
    weekday_dates: int,
    why: str,
    by: str,
) -> None:
    """Take the windows inside a span of time as the reference."""
    need = _need(effect, min_effect)
    with _session(database_url, model, version) as (store, found):
        span = (_time(start), _time(end))
        made = making.from_windows(store, found, *span, need, weekday_dates, Decision(by, why))
        _made(store, found, made)


@command.command("offline")
@_database
@_model
@_version
@click.argument("file", type=click.Path(path_type=Path))
@_effect
@_tolerated
@_why
@_by
def offline_(
    database_url: str,
    model: str,
    version: str | None,
    file: Path,
    effect: float,
    min_effect: float,
    why: str,
    by: str,
) -> None:
    """Take a calibration run as the reference: FILE holds window messages, each after its length as a varint."""
    need = _need(effect, min_effect)
    with _session(database_url, model, version) as (store, found):
        windows = offline.read(file, found, datetime.now(UTC))
        _made(store, found, making.from_offline(store, found, windows, need, Decision(by, why)))


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
@_why
@_by
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
    why: str,
    by: str,
) -> None:
    """Make the reference anew from the first requests, or take over the previous version's."""
    need, now, decision = _need(effect, min_effect), datetime.now(UTC), Decision(by, why)
    with _session(database_url, model, version) as (store, found):
        if source == "previous-version":
            made = choice.from_previous(store, found, requests, now, windows, decision)
        else:
            made = making.from_first_requests(store, found, requests, now, need, weekday_dates, windows, decision)
        _made(store, found, made)


@command.command("accept")
@_database
@_model
@_version
@click.option("--why", required=True, help="Why this is normal; kept for the postmortem.")
@_by
@click.option("--requests", default=1000, show_default=True, type=click.IntRange(min=1), help="Requests to take.")
@click.option("--windows", default=10, show_default=True, type=click.IntRange(min=1), help="Windows to take at least.")
@click.option("--since", default=None, help="Take no older windows, ISO 8601; else since the present findings began.")
@_effect
@_tolerated
def accept_(
    database_url: str,
    model: str,
    version: str | None,
    why: str,
    by: str,
    requests: int,
    windows: int,
    since: str | None,
    effect: float,
    min_effect: float,
) -> None:
    """Accept the present as normal: the newest windows become the reference, and what was found against the former one
    ends with the next check."""
    need, begin, now = _need(effect, min_effect), None if since is None else _time(since), datetime.now(UTC)
    if not why.strip():
        raise click.BadParameter("--why is empty: say why this is normal, for whoever reads the postmortem")
    with _session(database_url, model, version) as (store, found):
        made, left = decisions.accept(store, found, requests, windows, begin, now, need, by, why)
        print_references([made], found)
        if made.decision is not None and made.decision.accepts:
            click.echo(f"Accepted: {', '.join(made.decision.accepts)}")
        if left:
            click.echo(f"Not ended by this, for they do not rest on a reference: {', '.join(left)}")


@command.command("policy")
@_database
@click.argument("model")
@click.argument("policy", type=click.Choice(["auto", "inherit", "own", "pinned"]), required=False)
@click.option("--reference", "reference_id", type=int, default=None, help="With pinned: another than the one in use.")
@_why
@_by
def policy_(database_url: str, model: str, policy: Policy | None, reference_id: int | None, why: str, by: str) -> None:
    """Choose where the next versions of MODEL get their references from; without a policy, show it.

    auto: the former version's where the new one is near it, else its own first requests. inherit: the former version's
    wherever the probes are the same. own: its own first requests. pinned: the one in use now, until this is changed.
    """
    with _session(database_url, model, None) as (store, found):
        if policy is not None:
            decisions.set_policy(store, found, policy, reference_id, by, why)
        print_policy(model, store.reference_policy(model))


@command.command()
@_database
@_model
@_version
def show(database_url: str, model: str, version: str | None) -> None:
    """List a version's references, the newest, which is in use, first; and the policy for the versions to come."""
    with _session(database_url, model, version) as (store, found):
        print_policy(model, store.reference_policy(model))
        if (kin := choice.former_kinship(store, found)) is not None:
            click.echo(f"Is it near version {kin[0].version}? {kin[1]}")
        known = store.references(found.id)
        if not known:
            raise click.ClickException(f"{found.model}@{found.version} has no reference yet")
        print_references(known, found)


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
    except (StoreError, making.NoReference, offline.OfflineError) as error:
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


def _made(store: Store, version: ModelVersion, made: Reference) -> None:
    """After a person has made a reference."""
    if decisions.repin(store, version, made):
        click.echo(f"Pinned reference {made.id} for the versions to come, instead of the former one.")
    print_references([made], version)
