"""The SQL by which a reader reproduces the report's tables, from the public views alone."""

from __future__ import annotations

from datetime import UTC, datetime

from detector.domain.finding import Check
from detector.store import ModelVersion


def queries(version: ModelVersion, since: datetime, now: datetime, check: Check | None) -> list[tuple[str, str]]:
    """(title, statement) for each table, with this report's version and times filled in as quoted literals.

    ``check`` is the one shown; without it, layers are summed up over the whole period.
    """
    name = f"model = {_text(version.model)} AND version = {_text(version.version)}"
    who = f"{name}\n  AND model_version_id = {version.id}"
    start, end = since, now
    if check is not None and check.window_start and check.window_end:
        start, end = check.window_start, check.window_end
    checked = f"{who} AND checked_at >= {_time(since)}"
    return [
        (
            "Layers",
            "SELECT layer, kind, op, channels, sum(n) AS requests,\n"
            "       sum(active_share * n) / sum(n) AS active_share, sum(mean * n) / sum(n) AS mean, max(max) AS max\n"
            f"FROM layer_health\nWHERE {who}\n"
            f"  AND window_start >= {_time(start)} AND window_end <= {_time(end)}\n"
            "GROUP BY layer, kind, op, position, channels ORDER BY position;",
        ),
        (
            "Timeline",
            "SELECT window_start, layer, n, active_share, mean, max, silent_channels, nonfinite\n"
            f"FROM layer_health\nWHERE {who}\n"
            f"  AND window_start >= {_time(since)} AND window_end <= {_time(now)}\n"
            "ORDER BY position, window_start;",
        ),
        (
            "Findings: dead channels",
            "SELECT checked_at, layer, channel, label, cause, origin, p_value, n, n_reference, compared_with, text\n"
            f"FROM dead_channels\nWHERE {checked}\nORDER BY checked_at DESC, position, channel;",
        ),
        (
            "Findings: drift, explosion and sparsity",
            "SELECT checked_at, layer, test, cause, origin, channels_changed, channels_total, effect,\n"
            "       details ->> 'psi' AS psi, p_value, details ->> 'compared_with' AS compared_with, summary\n"
            f"FROM drift_findings\nWHERE {checked}\nORDER BY checked_at DESC, position;",
        ),
        (
            "Findings: paired replay",
            "SELECT checked_at, layer, test, cause, origin, baseline, agents, effect, p_value, n, summary\n"
            f"FROM paired_findings\nWHERE {checked}\nORDER BY checked_at DESC, position;",
        ),
        (
            "Paired replay, by baseline and agent",
            "SELECT kind, baseline, agent_id, provider, sum(n) AS requests, sum(top1_agree) AS top1_agree,\n"
            "       sum(top1_n) AS top1_n, max(accuracy) AS accuracy, sum(mismatched) AS mismatched,\n"
            "       min(worst_sqnr_db) AS worst_sqnr_db\n"
            f"FROM model_comparisons\nWHERE {who}\n"
            f"  AND (kind = 'holdout' OR window_start >= {_time(since)} AND window_end <= {_time(now)})\n"
            "GROUP BY kind, baseline, agent_id, provider ORDER BY kind, baseline, agent_id;",
        ),
        (
            "Alerts, with the runbook text that on-call saw",
            "SELECT starts_at, ends_at, alertname, status, severity, layer, cause,\n"
            "       runbook_name, runbook_version, runbook_body\n"
            f"FROM alert_timeline\nWHERE {name}\n"
            f"  AND coalesce(ends_at, 'infinity') >= {_time(since)}\n"
            "ORDER BY starts_at;",
        ),
    ]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _time(time: datetime) -> str:
    return f"'{time.astimezone(UTC).isoformat(sep=' ')}'"
