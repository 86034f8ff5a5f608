"""docs/sql.md against the database: every column is documented, every example runs."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from deploy.local.postgres import psycopg_url

TEXT = (Path(__file__).parents[3] / "docs" / "sql.md").read_text()
SECTIONS = {part.split("\n", 1)[0].strip(): part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}
EXAMPLES = [
    (view, query) for view, part in SECTIONS.items() for query in re.findall(r"```sql\n(.*?)```", part, re.DOTALL)
]


def test_every_view_has_its_section_and_examples(database_url: str) -> None:
    with psycopg.connect(psycopg_url(database_url)) as connection:
        views = connection.execute("SELECT viewname FROM pg_views WHERE schemaname = 'public'").fetchall()
    assert {row[0] for row in views} == set(SECTIONS)
    assert {view for view, _ in EXAMPLES} == set(SECTIONS)


@pytest.mark.parametrize("view", SECTIONS)
def test_every_column_is_documented(database_url: str, view: str) -> None:
    with psycopg.connect(psycopg_url(database_url)) as connection:
        query = "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
        columns = {row[0] for row in connection.execute(query, (view,))}
    rows = re.findall(r"^\| ([a-z0-9_, ]+) \|", SECTIONS[view], re.MULTILINE)
    documented = {name for row in rows for name in row.split(", ")} - {"column"}
    assert documented == columns


@pytest.mark.parametrize(("view", "query"), EXAMPLES)
def test_every_example_runs(database_url: str, view: str, query: str) -> None:
    with psycopg.connect(psycopg_url(database_url)) as connection:
        assert connection.execute(query.encode()).description
