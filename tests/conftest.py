"""Real servers for the tests, and one line about what could not be run."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.local import kafka as local_kafka
from deploy.local import prometheus as local_prometheus
from deploy.local.broker import Broker, embedded_broker
from deploy.local.postgres import postgres, psycopg_url, with_database

NOT_RUN = pytest.StashKey[dict[str, set[str]]]()
"""What was missing, to the ids of the tests that could not run."""
_PROGRAMS_OF = {
    "monitoring": ("prometheus", "alertmanager"),
    "promtool": ("promtool",),
    "amtool": ("amtool",),
    "chromium": ("chromium",),
}
"""Fixture to the programs that it needs."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_RUN] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what lacks a server and have the summary say so; with CI=true fail, for there everything must run."""
    missing = list(_missing(item))
    for what in missing:
        item.config.stash[NOT_RUN].setdefault(what, set()).add(item.nodeid)
    if missing and _in_ci():
        pytest.fail(f"cannot run without {', '.join(missing)}", pytrace=False)
    if missing:
        pytest.skip(f"without {', '.join(missing)}")
    if item.get_closest_marker("gpu") is not None and not _cuda():
        # Few machines have one, so this is no failure anywhere, but said all the same.
        item.config.stash[NOT_RUN].setdefault("a CUDA device for onnxruntime", set()).add(item.nodeid)
        pytest.skip("without a CUDA device for onnxruntime")


def _missing(item: pytest.Item) -> Iterator[str]:
    if item.get_closest_marker("kafka") is not None and (reason := local_kafka.unavailable()) is not None:
        yield f"Apache Kafka ({reason})"
    for fixture in getattr(item, "fixturenames", ()):
        for name in _PROGRAMS_OF.get(fixture, ()):
            if local_prometheus.program(name) is None:
                yield f"{name} (not installed)"


def _cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped = config.stash[NOT_RUN]
    if skipped:
        parts = "; ".join(f"{_tests(len(tests))} without {what}" for what, tests in sorted(skipped.items()))
        terminalreporter.write_line(f"NOT RUN: {parts}", red=_in_ci(), yellow=not _in_ci())


def _tests(count: int) -> str:
    return "1 test" if count == 1 else f"{count} tests"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that asks for `broker` the brokers it is to run on.

    Marked `transport`: the embedded one and Apache Kafka; marked `kafka`: Apache Kafka; else: the embedded one.
    """
    if "broker" not in metafunc.fixturenames:
        return
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    real = pytest.param("apache_kafka", id="kafka", marks=pytest.mark.kafka)
    brokers = ["embedded", real] if "transport" in marks else [real] if "kafka" in marks else ["embedded"]
    metafunc.parametrize("broker", brokers, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A directory that the user of the database server can walk to; pytest's own is closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="reluscope-tests-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(server_directory: Path) -> Iterator[str]:
    """URL of a real Postgres server's database `postgres`."""
    with postgres(server_directory) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> str:
    """Name of a database that has the shipped migrations and no rows; others are copied from it."""
    from detector.migrate import upgrade

    name = "template_migrated"
    _execute(postgres_server, f"CREATE DATABASE {name}")
    upgrade(with_database(postgres_server, name))
    return name


@pytest.fixture
def empty_database_url(postgres_server: str) -> Iterator[str]:
    """URL of a fresh database without any table."""
    yield from _database(postgres_server, "template0")


@pytest.fixture
def database_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """URL of a fresh database with the shipped migrations."""
    yield from _database(postgres_server, migrated_template)


def _database(server: str, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield with_database(server, name)
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: str, statement: str) -> None:
    with psycopg.connect(psycopg_url(server), autocommit=True) as connection:
        connection.execute(statement.encode())


@pytest.fixture(scope="session")
def embedded() -> Iterator[Broker]:
    """The broker inside this process."""
    with embedded_broker() as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_kafka(server_directory: Path) -> Iterator[Broker]:
    """Apache Kafka; tests that use it directly are marked `kafka`."""
    with local_kafka.kafka(server_directory / "kafka") as broker:
        yield broker


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Broker:
    """A broker; which one: see `pytest_generate_tests`. Take a topic of your own from `topic`."""
    broker = request.getfixturevalue(request.param)
    assert isinstance(broker, Broker)
    return broker


@pytest.fixture
def topic() -> str:
    """The name of a topic that no other test uses."""
    return f"reluscope.windows.{uuid.uuid4().hex[:12]}"


@pytest.fixture
def monitoring() -> None:
    """Present where Prometheus and Alertmanager are; start them with `deploy.local.prometheus`."""


@pytest.fixture
def promtool() -> str:
    """The path of promtool."""
    return local_prometheus.require("promtool")


@pytest.fixture
def amtool() -> str:
    """The path of amtool."""
    return local_prometheus.require("amtool")


@pytest.fixture
def chromium() -> str:
    """The path of Chromium."""
    return local_prometheus.require("chromium")
