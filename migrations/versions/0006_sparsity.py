"""Sparsity: how it scatters between a reference's windows, and its findings among those of drift."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = ("reference_probes", "reference_hours")

_DRIFT_FINDINGS = """
CREATE OR REPLACE VIEW drift_findings AS
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
"""


def upgrade() -> None:
    """Adds the columns; references that are there already have none, and the widest band."""
    for table in _TABLES:
        op.execute(
            f"ALTER TABLE {table} ADD COLUMN sparsity_variance double precision, "
            "ADD COLUMN sparsity_design double precision"
        )
    op.execute(_DRIFT_FINDINGS + "WHERE f.test IN ('drift', 'explosion', 'sparsity')")


def downgrade() -> None:
    """Drops them, and the verdicts and the evidence that the release before knows no name for."""
    op.execute(_DRIFT_FINDINGS + "WHERE f.test IN ('drift', 'explosion')")
    op.execute("DELETE FROM findings WHERE test IN ('sparsity', 'fleet')")
    # Evidence on drift has another shape now; windows that were used stay used.
    op.execute("DELETE FROM alarm_families WHERE family IN ('drift', 'sparsity', 'fleet')")
    op.execute("UPDATE checks SET alarms = alarms - 'sparsity' - 'fleet'")
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} DROP COLUMN sparsity_variance, DROP COLUMN sparsity_design")
