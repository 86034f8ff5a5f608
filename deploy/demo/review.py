"""After the play: the queries that a reviewer would run, the report that a model owner would open."""

from __future__ import annotations

from pathlib import Path
from typing import Any, LiteralString

from rich.console import Console

from deploy.demo.stage import MODEL, Stage, call
from deploy.demo.watch import Watcher

QUESTIONS: tuple[tuple[str, LiteralString], ...] = (
    (
        "What drifted first, and why?",
        """SELECT version, layer, cause, round(max(effect)::numeric, 2) AS effect,
       min(checked_at)::time(0) AS first_seen
FROM drift_findings
WHERE model = 'digits' AND origin
GROUP BY version, layer, cause
ORDER BY first_seen""",
    ),
    (
        "Which channels of version 2 are dead that were not before?",
        """SELECT layer, array_agg(DISTINCT channel ORDER BY channel) AS channels,
       max(n) AS requests, min(checked_at)::time(0) AS first_seen
FROM dead_channels
WHERE model = 'digits' AND version = '2' AND label = 'newly_dead'
GROUP BY layer""",
    ),
)
ALERT_QUESTION: tuple[str, LiteralString] = (
    "What was on-call told, and which text did they read?",
    """SELECT alertname, version, layer, starts_at::time(0) AS since,
       runbook_name || ' v' || runbook_version AS runbook, left(runbook_sha256, 8) AS sha256
FROM alert_timeline
ORDER BY starts_at, alertname""",
)


def ask(console: Console, watcher: Watcher, alerting: bool) -> None:
    """Print each question, its SQL and the database's answer; on alerts only where they can have been sent."""
    for question, sql in (*QUESTIONS, *[ALERT_QUESTION] * alerting):
        console.print(f"\n{question}", style="bold", markup=False, highlight=False)
        for line in sql.splitlines():
            console.print(f"    {line}", style="dim", markup=False, highlight=False, soft_wrap=True)
        for line in answer(*watcher.query(sql)):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def answer(columns: list[str], rows: list[tuple[Any, ...]]) -> list[str]:
    """The answer's lines, laid out as psql does; never cut, however narrow the terminal."""
    cells = [columns, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [" | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    count = f"({len(rows)} row{'s' * (len(rows) != 1)})"
    return [lines[0], "-+-".join("-" * width for width in widths), *lines[1:], count]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def write_report(stage: Stage, path: Path) -> Path:
    """The HTML report on both versions, made by the product's own command; raises ServerError when that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    call("report", "--database-url", stage.database_url, "--model", MODEL, "--since", "1h", "--output", str(path))
    return path.resolve()


def routed(watcher: Watcher, alerting: bool) -> str:
    """One line on whether alerts went through Prometheus and Alertmanager into the alert_timeline view."""
    if not alerting:
        return "Prometheus and Alertmanager are not installed here; the alert was not routed through them."
    names = watcher.routed_alerts()
    if not names:
        return "Prometheus and Alertmanager run with the shipped rules, but no alert has come back from them yet."
    return f"Routed by Prometheus and Alertmanager, and kept in Postgres: {', '.join(sorted(names))}."
