"""After the play: the queries that a reviewer would run, the report that a model owner would open."""

from __future__ import annotations

from pathlib import Path
from typing import Any, LiteralString

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.demo.stage import MODEL, Stage, call
from deploy.demo.watch import Watcher

QUESTIONS: tuple[tuple[str, LiteralString], ...] = (
    (
        "What was found, where did it begin, and why?",
        """SELECT version, layer, test, cause, count(*) AS checks, min(checked_at)::time(0) AS first_seen
FROM drift_findings
WHERE model = 'digits' AND origin
GROUP BY version, layer, test, cause
ORDER BY first_seen""",
    ),
    (
        "Which channels of version 2 are dead that were not before?",
        """SELECT layer, array_agg(channel ORDER BY channel) AS dead, count(*) AS channels
FROM dead_channels
WHERE model = 'digits' AND version = '2' AND label = 'newly_dead'
GROUP BY layer""",
    ),
)


def ask(console: Console, watcher: Watcher) -> None:
    """Print each question, its SQL and the database's answer."""
    for question, sql in QUESTIONS:
        console.print(f"\n{question}", style="bold", markup=False, highlight=False)
        console.print("".join(f"    {line}\n" for line in sql.splitlines()), style="dim", markup=False, end="")
        console.print(answer_table(*watcher.query(sql)))


def answer_table(columns: list[str], rows: list[tuple[Any, ...]]) -> Table:
    """The answer as psql would lay it out, more or less."""
    table = Table(*columns, show_edge=False, title_justify="left")
    for row in rows:
        table.add_row(*(Text(", ".join(map(str, cell)) if isinstance(cell, list) else str(cell)) for cell in row))
    return table


def write_report(stage: Stage, path: Path) -> Path:
    """The HTML report on both versions, made by the product's own command; raises ServerError when that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    call("report", "--database-url", stage.database_url, "--model", MODEL, "--since", "1h", "--output", str(path))
    return path.resolve()


def routed(watcher: Watcher, alerting: bool) -> str:
    """One line on whether alerts went through Prometheus and Alertmanager into the alert_timeline view."""
    if not alerting:
        return "Prometheus and Alertmanager are not installed here; the alert was not routed through them."
    _, rows = watcher.query("SELECT DISTINCT alertname FROM alert_timeline ORDER BY alertname")
    if not rows:
        return (
            "Prometheus and Alertmanager run with the shipped rules, whose `for` is longer than this demo: "
            "nothing was routed yet."
        )
    return f"Prometheus and Alertmanager routed, back into Postgres: {', '.join(name for (name,) in rows)}."
