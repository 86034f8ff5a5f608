"""Views: the public SQL of docs/sql.md."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LAYER_HEALTH = """
CREATE VIEW layer_health AS
SELECT v.id AS model_version_id, v.model, v.version, v.digest,
       p.name AS layer, p.kind, p.op, p.position,
       w.window_start, w.window_end, w.n,
       cardinality(w.active) AS channels,
       c.active_share, c.sparsity, c.silent_channels, c.mean, c.max, c.nonfinite
FROM windows w
JOIN probes p ON p.id = w.probe_id
JOIN model_versions v ON v.id = w.model_version_id
CROSS JOIN LATERAL (
    SELECT (sum(u.active) / nullif(sum(w.n - u.nonfinite), 0))::double precision AS active_share,
           1 - sum(u.fraction_sum) / nullif(sum(w.n - u.nonfinite), 0)::double precision AS sparsity,
           count(*) FILTER (WHERE u.active = 0 AND w.n > u.nonfinite)::integer AS silent_channels,
           sum(u.mean * (w.n - u.nonfinite)) / nullif(sum(w.n - u.nonfinite), 0)::double precision AS mean,
           max(u.max) FILTER (WHERE w.n > u.nonfinite) AS max,
           sum(u.nonfinite)::bigint AS nonfinite
    FROM unnest(w.active, w.nonfinite, w.fraction_sum, w.mean, w.max) AS u (active, nonfinite, fraction_sum, mean, max)
) c
"""

# Evidence is kept for the worst channels only; the others' label is known where the finding counts but one label.
_DEAD_CHANNELS = """
CREATE VIEW dead_channels AS
SELECT f.id AS finding_id, c.id AS check_id, c.finished_at AS checked_at, c.window_start, c.window_end,
       v.id AS model_version_id, v.model, v.version, v.digest,
       f.layer, f.position, channel.number AS channel,
       coalesce(e.item ->> 'label',
                CASE WHEN f.details ->> 'dormant' = '0' THEN 'newly_dead'
                     WHEN f.details ->> 'newly_dead' = '0' THEN 'dormant' END) AS label,
       (e.item ->> 'p_value')::double precision AS p_value,
       (e.item ->> 'effect')::double precision AS effect,
       coalesce((e.item ->> 'n')::bigint, f.n) AS n,
       coalesce((e.item ->> 'n_reference')::bigint, f.n_reference) AS n_reference,
       e.item ->> 'text' AS text,
       f.cause, f.severity, f.origin, f.alert, f.runbook_name, f.runbook_version
FROM findings f
JOIN checks c ON c.id = f.check_id
JOIN model_versions v ON v.id = c.model_version_id
CROSS JOIN LATERAL unnest(f.channels) AS channel (number)
LEFT JOIN LATERAL (
    SELECT item FROM jsonb_array_elements(f.evidence) AS item
    WHERE (item ->> 'channel')::integer = channel.number LIMIT 1
) e ON true
WHERE f.test = 'dead'
"""

_DRIFT_FINDINGS = """
CREATE VIEW drift_findings AS
SELECT f.id AS finding_id, c.id AS check_id, c.finished_at AS checked_at, c.window_start, c.window_end,
       v.id AS model_version_id, v.model, v.version, v.digest,
       f.layer, f.kind, f.position, f.test, f.cause, f.severity, f.origin,
       f.channels, cardinality(f.channels) AS channels_changed, f.channels_total,
       f.statistic, f.p_value, f.effect, f.n, f.n_reference, f.summary, f.evidence, f.details,
       r.origin AS reference_origin, s.version AS reference_version,
       r.window_start AS reference_start, r.window_end AS reference_end,
       f.alert, f.runbook_name, f.runbook_version
FROM findings f
JOIN checks c ON c.id = f.check_id
JOIN model_versions v ON v.id = c.model_version_id
LEFT JOIN model_references r ON r.id = c.reference_id
LEFT JOIN model_versions s ON s.id = r.source_version_id
WHERE f.test <> 'dead'
"""

_ALERT_TIMELINE = """
CREATE VIEW alert_timeline AS
SELECT a.id AS alert_id, a.fingerprint, a.alertname, a.status, a.severity,
       a.model, a.version, a.layer, a.cause,
       a.starts_at, a.ends_at, a.ends_at - a.starts_at AS duration, a.received_at,
       a.labels, a.annotations, a.annotations ->> 'summary' AS summary,
       a.runbook_name, a.runbook_version, r.sha256 AS runbook_sha256, r.owner AS runbook_owner, r.body AS runbook_body
FROM alerts a
LEFT JOIN runbooks r ON r.name = a.runbook_name AND r.version = a.runbook_version
"""

_VIEWS = ("layer_health", "dead_channels", "drift_findings", "alert_timeline")


def upgrade() -> None:
    """Makes the views."""
    for statement in (_LAYER_HEALTH, _DEAD_CHANNELS, _DRIFT_FINDINGS, _ALERT_TIMELINE):
        op.execute(statement)


def downgrade() -> None:
    """Drops the views."""
    for view in reversed(_VIEWS):
        op.execute(f"DROP VIEW {view}")
