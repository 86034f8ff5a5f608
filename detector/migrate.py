"""`reluscope migrate`: the database schema, up or down."""

from __future__ import annotations

import click

from agent.options import options
from detector import resources
from detector.domain.settings import Database
from detector.store.errors import StoreError
from detector.store.migration import current, head, move


def upgrade(url: str) -> None:
    """Brings the schema of the database at ``url`` to the newest revision; raises StoreError."""
    move(url, resources.migrations())


@click.command("migrate", context_settings={"auto_envvar_prefix": "RELUSCOPE_MIGRATE"})
@options(Database)
@click.option("--down", metavar="REVISION", help="Go down to this revision; base drops every table and its data.")
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 unless the schema is the newest.")
def command(settings: Database, down: str | None, check: bool) -> None:
    """Brings the database's schema to the newest revision."""
    try:
        scripts = resources.migrations()
        if check:
            _check(current(settings.url), head(scripts))
            return
        before, after = move(settings.url, scripts, down or "head", down=down is not None)
    except (StoreError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    if before == after:
        click.echo(f"the schema is at {after or 'base'} already")
    else:
        click.echo(f"migrated the schema from {before or 'base'} to {after or 'base'}")


def _check(found: str | None, newest: str | None) -> None:
    if found != newest:
        state = f"the schema is at {found or 'base'}, the newest is {newest}"
        raise click.ClickException(f"{state}: run `reluscope migrate`")
    click.echo(f"the schema is at {found}, the newest")
