"""The connection to Postgres, and the one place where its errors become the store's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from detector.store.errors import StoreError, StoreRefused, StoreUnavailable

CONNECT_TIMEOUT_SECONDS = 5
_GONE_SECONDS = 30
"""A server whose machine vanished, as in a failover, sends no goodbye: its connections fail after as long."""
_KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": _GONE_SECONDS // 2,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": _GONE_SECONDS * 1000,
}
"""For libpq; what the URL says goes before."""
_NOT_MIGRATED = frozenset({"42P01", "42703"})
"""SQLSTATE of an unknown table and of an unknown column."""
_GAVE_WAY = ("08", "40", "53", "55", "57")
"""SQLSTATE classes that say nothing against the data: connection, rollback, resources, locks, operator."""
_BAD_DATA = ("22", "23", "54")
"""SQLSTATE classes of values, constraints and program limits."""


def parse_url(url: str) -> URL:
    """Checks a database URL; raises StoreError without repeating it, as it may hold a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError("the database URL is none: expected postgresql+psycopg://user@host:port/database") from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername != "postgresql+psycopg":
        raise StoreError(f"the database URL begins with {parsed.drivername}://: expected postgresql+psycopg://")
    if "@" in (parsed.host or ""):
        raise StoreError("the database URL has an @ in its user or password: write it as %40")
    return parsed


class Database:
    """A pool of connections that opens with the first transaction."""

    def __init__(self, url: str) -> None:
        parsed = parse_url(url)
        # Host and database alone: user, password and query may hold secrets.
        self._name = f"Postgres at {parsed.host or 'the local socket'}:{parsed.port or 5432}/{parsed.database or ''}"
        self._engine = create_engine(
            parsed,
            pool_pre_ping=True,
            pool_size=5,
            max_overflow=5,
            pool_timeout=30,
            hide_parameters=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "application_name": "reluscope",
                **{name: value for name, value in _KEEPALIVE.items() if name not in parsed.query},
            },
        )

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, rolled back where it raises."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise self._translate(error) from error
        except PoolTimeout as error:
            raise StoreUnavailable(f"{self._name}: every connection has been busy for 30 s") from error

    def close(self) -> None:
        """Closes idle connections; the pool opens new ones if it is used again."""
        self._engine.dispose()

    def _translate(self, error: DBAPIError) -> StoreError:
        state = getattr(error.orig, "sqlstate", None) or ""
        lines = str(error.orig).strip().splitlines()
        said = f"{self._name}: {lines[0] if lines else type(error.orig).__name__}"
        if state in _NOT_MIGRATED:
            return StoreError(f"{said}; run `reluscope migrate`")
        if state.startswith(_BAD_DATA):
            return StoreRefused(said)
        if not state or state.startswith(_GAVE_WAY) or error.connection_invalidated:
            return StoreUnavailable(said)
        return StoreError(said)
