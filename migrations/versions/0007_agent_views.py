"""Views on single agents: what each saw, and which ones differ from their fleet."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_AGENT_HEALTH = """
CREATE VIEW agent_health AS
SELECT v.id AS model_version_id, v.model, v.version, v.digest, w.agent_id,
       p.name AS layer, p.kind, p.op, p.position,
       w.window_start, w.window_end, w.n, w.n * coalesce(p.channels, 0) - w.nonfinite AS finite,
       w.active_share, w.mean, w.max, w.nonfinite
FROM agent_windows w
JOIN probes p ON p.id = w.probe_id
JOIN model_versions v ON v.id = p.model_version_id
"""

_FLEET_FINDINGS = """
CREATE VIEW fleet_findings AS
SELECT f.id AS finding_id, c.id AS check_id, c.finished_at AS checked_at, c.window_start, c.window_end,
       v.id AS model_version_id, v.model, v.version, v.digest,
       f.layer, f.kind, f.position, f.cause, f.severity, f.origin,
       ARRAY(SELECT jsonb_array_elements_text(f.details -> 'agents')) AS agents,
       f.statistic, f.p_value, f.effect, f.n, f.summary, f.evidence, f.details,
       f.alert, f.runbook_name, f.runbook_version
FROM findings f
JOIN checks c ON c.id = f.check_id
JOIN model_versions v ON v.id = c.model_version_id
WHERE f.test = 'fleet'
"""


def upgrade() -> None:
    """Makes the views."""
    op.execute(_AGENT_HEALTH)
    op.execute(_FLEET_FINDINGS)


def downgrade() -> None:
    """Drops them."""
    op.execute("DROP VIEW fleet_findings")
    op.execute("DROP VIEW agent_health")
