"""`reluscope reference`: choose or look at what a model version is compared with."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import click
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from agent.logging import configure
from agent.options import SECTION, Option, options
from detector.domain.settings import CheckSettings, Database, Target, Time
from detector.domain.slots import WEEKDAY_DATES
from detector.domain.types import Decision, ModelVersion, Policy, Reference
from detector.domain.watermark import closed_until
from detector.ingestion import offline
from detector.references import choice, decisions, making
from detector.references.listing import print_policy, print_references
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


def _person() -> str:
    """Who runs the command, as far as this machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


By = Annotated[
    str,
    Option(default="your user name"),
    Field(default_factory=_person, min_length=1, description="Who decides; kept for the postmortem."),
]


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Person:
    """Who decides, and why."""

    why: str = ""
    """Why; kept for the postmortem."""
    by: By

    def decision(self) -> Decision:
        """As it is kept."""
        return Decision(self.by, self.why)


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
    person: Person


@dataclass(frozen=True, kw_only=True, config=SECTION)
class OfflineSettings:
    """Every option of `reluscope reference offline`."""

    target: Target
    need: Need
    person: Person


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
    person: Person


@dataclass(frozen=True, kw_only=True, config=SECTION)
class AcceptSettings:
    """Every option of `reluscope reference accept`."""

    target: Target
    why: Annotated[str, AfterValidator(decisions.reason)]
    """Why this is normal; kept for the postmortem."""
    by: By
    requests: int = Field(default=1000, ge=1)
    """Requests to take."""
    windows: int = Field(default=10, ge=1)
    """Windows to take at least."""
    since: Time | None = None
    """Take no older windows, ISO 8601; else since the present findings began."""
    need: Need


@dataclass(frozen=True, kw_only=True, config=SECTION)
class PolicySettings:
    """Every option of `reluscope reference policy`."""

    database: Database
    reference: int | None = None
    """With pinned: the id of another reference than the one in use."""
    person: Person


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
        decision = s.person.decision()
        made = making.from_windows(store, found, s.start, s.end, s.need, s.weekday_dates, decision)
        _made(store, found, made)


@command.command("offline")
@options(OfflineSettings)
@click.argument("file", type=click.Path(path_type=Path))
def offline_(settings: OfflineSettings, file: Path) -> None:
    """Take a calibration run as the reference: FILE holds window messages, each after its length as a varint."""
    with _session(settings.target) as (store, found):
        windows = offline.read(file, found, datetime.now(UTC))
        decision = settings.person.decision()
        _made(store, found, making.from_offline(store, found, windows, settings.need, decision))


@command.command()
@options(AutoSettings)
def auto(settings: AutoSettings) -> None:
    """Make the reference anew from the first requests, or take over the previous version's."""
    s, now, decision = settings, datetime.now(UTC), settings.person.decision()
    with _session(s.target) as (store, found):
        if s.source == "previous-version":
            made = choice.from_previous(store, found, s.requests, now, s.windows, decision)
        else:
            made = making.from_first_requests(
                store, found, s.requests, now, s.need, s.weekday_dates, s.windows, decision
            )
        _made(store, found, made)


@command.command("accept")
@options(AcceptSettings)
def accept_(settings: AcceptSettings) -> None:
    """Accept the present as normal: the newest windows become the reference, and what was found ends with that."""
    s = settings
    with _session(s.target) as (store, found):
        # As checks see it: windows that may still get data are not the newest, they are not there yet.
        now, grace = store.now(), timedelta(seconds=CheckSettings().grace_seconds)
        closed = closed_until(store.ingested(found.id, now), now, grace, timedelta(0))
        made, left = decisions.accept(store, found, s.requests, s.windows, s.since, closed, s.need, s.by, s.why)
        print_references([made], found)
        if made.decision is not None and made.decision.accepts:
            click.echo(f"Accepted: {', '.join(made.decision.accepts)}")
        if left:
            click.echo(f"Not ended by this, for they do not rest on a reference: {', '.join(left)}")


@command.command("policy")
@options(PolicySettings)
@click.argument("model")
@click.argument("policy", type=click.Choice(["auto", "inherit", "own", "pinned"]), required=False)
def policy_(settings: PolicySettings, model: str, policy: Policy | None) -> None:
    """Choose where the next versions of MODEL get their references from; without a policy, show it.

    auto: the former version's where the new one is near it, else its own first requests. inherit: the former version's
    wherever the probes are the same. own: its own first requests. pinned: the one in use now, until this is changed.
    """
    with _session(Target(database=settings.database, model=model)) as (store, found):
        if policy is not None:
            decisions.set_policy(store, found, policy, settings.reference, settings.person.by, settings.person.why)
        print_policy(model, store.reference_policy(model))


@command.command()
@options(Target)
def show(settings: Target) -> None:
    """List a version's references, the newest, which is in use, first; and the policy for the versions to come."""
    with _session(settings) as (store, found):
        print_policy(found.model, store.reference_policy(found.model))
        if (kin := choice.former_kinship(store, found)) is not None:
            click.echo(f"Is it near version {kin[0].version}? {kin[1]}")
        known = store.references(found.id)
        if not known:
            raise click.ClickException(f"{found.model}@{found.version} has no reference yet")
        print_references(known, found)


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
    except (StoreError, making.NoReference, offline.OfflineError) as error:
        raise click.ClickException(str(error)) from error


def _made(store: Store, version: ModelVersion, made: Reference) -> None:
    """After a person has made a reference."""
    if decisions.repin(store, version, made):
        click.echo(f"Pinned reference {made.id} for the versions to come, instead of the former one.")
    print_references([made], version)
