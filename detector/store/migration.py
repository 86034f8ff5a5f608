"""Moving the schema up and down with Alembic, one process at a time."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from detector.store import locks
from detector.store.database import Database
from detector.store.errors import StoreError


def head(scripts: Path) -> str | None:
    """The newest revision there is a script for."""
    return ScriptDirectory.from_config(_config(scripts)).get_current_head()


def current(url: str) -> str | None:
    """The revision the database is at; None for an empty one. Raises StoreUnavailable where it cannot be reached."""
    database = Database(url)
    try:
        with database.begin() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        database.close()


def move(url: str, scripts: Path, target: str = "head", *, down: bool = False) -> tuple[str | None, str | None]:
    """Moves to ``target`` ("base" with ``down``: nothing left) and returns the revisions before and after.

    All steps are one transaction. Raises StoreError: unreachable, unknown revision, or a step that failed.
    """
    database = Database(url)
    config = _config(scripts)
    try:
        with database.begin() as connection:
            # Of replicas that start together, the first migrates and the others then find nothing to do.
            locks.wait(connection, locks.MIGRATION, 0)
            before = _revision(connection)
            config.attributes["connection"] = connection
            (command.downgrade if down else command.upgrade)(config, target)
            return before, _revision(connection)
    except CommandError as error:
        raise StoreError(f"cannot migrate to {target}: {error}") from error
    finally:
        database.close()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config(scripts: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    return config
