"""Alembic's entry: `reluscope migrate` hands over a connection; plain `alembic` uses RELUSCOPE_DATABASE_URL."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, create_engine


def run(connection: Connection) -> None:
    """Runs all steps in one transaction: a step that fails leaves the schema as it was."""
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
elif (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    with create_engine(os.environ["RELUSCOPE_DATABASE_URL"]).connect() as connection:
        run(connection)
        connection.commit()
