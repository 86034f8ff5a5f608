"""Advisory locks: one class per purpose, so that ids of different things never meet."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

MERGE = 7301
"""By model version: read, merge and write of its windows."""
CHECK = 7302
"""By model version: one check at a time."""
MAINTENANCE = 7303
REFERENCE = 7305
"""By model version: a change of its active reference."""
MIGRATION = 7304


def wait(connection: Connection, purpose: int, key: int) -> None:
    """Takes the lock until the transaction ends; waits for it."""
    connection.execute(select(func.pg_advisory_xact_lock(purpose, key)))


def attempt(connection: Connection, purpose: int, key: int) -> bool:
    """Takes the lock until the transaction ends, unless another has it."""
    return bool(connection.execute(select(func.pg_try_advisory_xact_lock(purpose, key))).scalar_one())
