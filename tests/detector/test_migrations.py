"""The shipped migrations, up and down, on a real Postgres."""

from __future__ import annotations

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import ARRAY, BigInteger, create_engine, inspect

from agent.wire import ProbeKind
from deploy.local.postgres import psycopg_url
from detector import resources
from detector.domain.layered import layered
from detector.domain.slots import ANY_DAY, Slot
from detector.migrate import command
from detector.store import Store, StoreError
from detector.store.migration import current, head, move
from detector.store.partitions import PARTITIONED
from detector.store.tables import metadata
from tests.detector.builders import MINUTE, START, compared, comparing, same, summary, window
from tests.detector.samples import NOW, check, finding

NEWEST = "0010"
VIEWS = {
    "layer_health", "dead_channels", "drift_findings", "alert_timeline",
    "model_comparisons", "probe_agreement", "paired_findings", "agent_health", "fleet_findings", "agent_states",
    "ingest_progress",
    "reference_history", "reference_policies",
}  # fmt: skip


@pytest.fixture
def url(empty_database_url: str) -> str:
    return empty_database_url


def relations(url: str, kind: str) -> set[str]:
    with psycopg.connect(psycopg_url(url)) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = %s", (kind,)
        )
        return {row[0] for row in rows}


def test_up_makes_all_and_down_leaves_nothing(url: str) -> None:
    scripts = resources.migrations()
    assert move(url, scripts) == (None, NEWEST)
    assert head(scripts) == current(url) == NEWEST
    assert relations(url, "v") == VIEWS
    assert move(url, scripts) == (NEWEST, NEWEST)
    assert move(url, scripts, "0001", down=True) == (NEWEST, "0001")
    assert relations(url, "v") == set()
    assert move(url, scripts, "base", down=True) == ("0001", None)
    assert relations(url, "r") | relations(url, "p") == {"alembic_version"}
    assert move(url, scripts) == (None, NEWEST)


def test_tables_keep_their_data_when_views_go_and_come(url: str) -> None:
    scripts = resources.migrations()
    move(url, scripts)
    store = Store(url)
    store.ingest("t", 0, None, 1, [window(1), window(2, START + MINUTE)])
    store.maintain(START, retention_days=30, days_ahead=1)
    found = store.model_version("digits", "1")
    assert found is not None
    before = store.history(found.id, START, START + 2 * MINUTE)
    assert len(before) == 4
    move(url, scripts, "0001", down=True)
    with pytest.raises(StoreError, match="reluscope migrate"):
        store.ping()
    move(url, scripts)
    store.ping()
    assert store.history(found.id, START, START + 2 * MINUTE) == before
    store.close()
    move(url, scripts, "base", down=True)  # with data and partitions, too
    assert relations(url, "r") | relations(url, "p") == {"alembic_version"}


def test_comparisons_come_and_go_alone(url: str) -> None:
    scripts = resources.migrations()
    move(url, scripts)
    store = Store(url)
    store.ingest("t", 0, None, 2, [window(1), comparing(2, compared())])
    found = store.model_version("digits", "1")
    assert found is not None
    store.save_check(check(found.id, finding("conv1"), finding("conv1", "hardware", "hardware_mismatch")), {})
    assert move(url, scripts, "0002", down=True) == (NEWEST, "0002")
    assert len(store.history(found.id, START, START + MINUTE)) == 2
    with psycopg.connect(psycopg_url(url)) as connection:
        # The release before has no name for them, and would show them as drift.
        assert connection.execute("SELECT test FROM findings").fetchall() == [("dead",)]
        assert connection.execute("SELECT count(*) FROM drift_findings").fetchone() == (0,)
    with pytest.raises(StoreError, match="reluscope migrate"):
        store.ping()
    move(url, scripts)
    store.ping()
    assert store.comparisons(found.id, START, START + MINUTE, START) == []
    assert [stored.check.comparisons for stored in store.checks(found.id, NOW, 9)] == [()]
    store.close()


def test_weekdays_go_and_the_hours_of_references_stay(url: str) -> None:
    scripts = resources.migrations()
    move(url, scripts)
    store = Store(url)
    store.ingest("t", 0, None, 1, [window(1)])
    content = {"conv1": summary()}
    slots = [(slot, layered(lambda: [content])) for slot in (Slot(ANY_DAY, 8), Slot(1, 8), Slot(1, 9))]
    made = store.save_reference(1, "windows", 1, START, START + MINUTE, 20, content, {}, slots)
    move(url, scripts, "0004", down=True)
    with psycopg.connect(psycopg_url(url)) as connection:
        assert connection.execute("SELECT hour, name FROM reference_hours").fetchall() == [(8, "conv1")]
    move(url, scripts)
    assert [one.slots for one in store.references(1)] == [(Slot(ANY_DAY, 8),)]
    assert same(store.reference_slot(made, Slot(ANY_DAY, 8)).summaries["conv1"], content["conv1"])
    store.close()


def test_a_failing_step_changes_nothing(url: str) -> None:
    with psycopg.connect(psycopg_url(url)) as connection:
        connection.execute("CREATE TABLE alerts (mine text)")
    with pytest.raises(StoreError, match="alerts"):
        move(url, resources.migrations())
    assert relations(url, "r") == {"alerts"}


def test_the_code_knows_the_tables_as_they_are(database_url: str) -> None:
    engine = create_engine(database_url)
    inspector = inspect(engine)
    for table in metadata.sorted_tables:
        stored = {column["name"]: column for column in inspector.get_columns(table.name)}
        assert set(stored) == set(table.columns.keys()), table.name
        for column in table.columns:
            assert _kind(stored[column.name]["type"]) == _kind(column.type), f"{table.name}.{column.name}"
        assert set(inspector.get_pk_constraint(table.name)["constrained_columns"]) == {
            column.name for column in table.primary_key
        }
    tables = relations(database_url, "r") | relations(database_url, "p")
    defaults = {f"{table}_default" for table in PARTITIONED}
    assert tables - defaults - {"alembic_version"} == set(metadata.tables)
    engine.dispose()


def _kind(type_: object) -> str:
    if isinstance(type_, ARRAY):
        return f"{_kind(type_.item_type)}[]"
    text = "BIGINT" if isinstance(type_, BigInteger) else str(type_).upper()
    return {"DATETIME": "TIMESTAMP", "DOUBLE_PRECISION": "DOUBLE", "DOUBLE PRECISION": "DOUBLE", "BLOB": "BYTEA"}.get(
        text, text
    )


@pytest.mark.parametrize("kind", ProbeKind.__args__)  # type: ignore[attr-defined]
def test_every_kind_of_probe_is_allowed(database_url: str, kind: str) -> None:
    with psycopg.connect(psycopg_url(database_url)) as connection:
        connection.execute("INSERT INTO model_versions VALUES (1, 'm', '1', '', now())")
        connection.execute("INSERT INTO probes VALUES (1, 1, 'a', 'Relu', 't', %s, NULL, 1, 0, true)", (kind,))


def run(*arguments: str, url: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, arguments, env={"RELUSCOPE_DATABASE_URL": url})
    return result.exit_code, result.output


def test_the_command_goes_up_checks_and_goes_down(url: str) -> None:
    assert run("--check", url=url) == (
        1,
        f"Error: the schema is at base, the newest is {NEWEST}: run `reluscope migrate`\n",
    )
    assert run(url=url) == (0, f"migrated the schema from base to {NEWEST}\n")
    assert run(url=url) == (0, f"the schema is at {NEWEST} already\n")
    assert run("--check", url=url)[0] == 0
    assert run("--down", "base", url=url) == (0, f"migrated the schema from {NEWEST} to base\n")
    assert run("--check", url=url) == (1, "Error: the schema is at base, the newest is 0010: run `reluscope migrate`\n")
    assert run(url=url) == (0, "migrated the schema from base to 0010\n")
    assert run(url=url) == (0, "the schema is at 0010 already\n")
    assert run("--check", url=url)[0] == 0
    assert run("--down", "base", url=url) == (0, "migrated the schema from 0010 to base\n")
    code, output = run("--down", "nonsense", url=url)
    assert code == 1
    assert "nonsense" in output


def test_the_command_names_an_unreachable_server_but_no_password() -> None:
    code, output = run(url="postgresql+psycopg://me:hunter2@127.0.0.1:9/db")
    assert code == 1
    assert "127.0.0.1" in output
    assert "hunter2" not in output
    code, output = run(url="hunter2")
    assert code == 1
    assert "hunter2" not in output


def test_a_missing_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no folder nothing"):
        resources.resource_dir("nothing")
    assert resources.migrations().is_dir()
