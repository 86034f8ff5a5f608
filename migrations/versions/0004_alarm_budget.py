"""Evidence over time: how far each model version's sequential tests have come, and the references' design effects."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# One row per model version, which is compared and swapped; the rest is replaced with it.
_STATES = """
CREATE TABLE alarm_states (
    model_version_id integer PRIMARY KEY REFERENCES model_versions,
    reference_id integer NOT NULL REFERENCES model_references,
    batch_start timestamptz NOT NULL,
    batch_end timestamptz NOT NULL,
    n bigint NOT NULL,
    windows integer NOT NULL,
    CHECK (batch_start < batch_end)
);
CREATE TABLE alarm_families (
    model_version_id integer NOT NULL REFERENCES alarm_states ON DELETE CASCADE,
    family text NOT NULL,
    days double precision NOT NULL,
    alarm boolean NOT NULL,
    PRIMARY KEY (model_version_id, family)
);
CREATE TABLE alarm_layers (
    model_version_id integer NOT NULL,
    family text NOT NULL,
    layer text NOT NULL,
    evidence double precision[] NOT NULL,
    PRIMARY KEY (model_version_id, family, layer),
    FOREIGN KEY (model_version_id, family) REFERENCES alarm_families ON DELETE CASCADE
);
"""

_COLUMNS = """
ALTER TABLE checks ADD COLUMN alarms jsonb NOT NULL DEFAULT '{}';
ALTER TABLE model_references
    DROP CONSTRAINT model_references_origin_check,
    ADD CONSTRAINT model_references_origin_check
        CHECK (origin IN ('windows', 'first_requests', 'previous_version', 'offline'));
ALTER TABLE reference_probes
    ADD COLUMN design_effect double precision[],
    ADD COLUMN design_estimate double precision,
    ADD COLUMN design_windows integer,
    ADD COLUMN design_requests double precision;
"""


_HOURS = """
CREATE TABLE reference_hours (
    LIKE reference_probes INCLUDING ALL,
    hour smallint NOT NULL CHECK (hour BETWEEN 0 AND 23)
);
ALTER TABLE reference_hours
    DROP CONSTRAINT reference_hours_pkey,
    ADD PRIMARY KEY (reference_id, hour, name),
    ADD FOREIGN KEY (reference_id) REFERENCES model_references ON DELETE CASCADE;
"""


def upgrade() -> None:
    """Makes the tables and columns; references that are there already have no design effect."""
    op.execute(_STATES)
    op.execute(_COLUMNS)
    op.execute(_HOURS)


def downgrade() -> None:
    """Drops them; after an upgrade evidence begins anew."""
    for name in ("reference_hours", "alarm_layers", "alarm_families", "alarm_states"):
        op.execute(f"DROP TABLE {name}")
    op.execute("ALTER TABLE checks DROP COLUMN alarms")
    # References of calibration runs stay, as what the former release knows; only their origin is lost.
    op.execute("UPDATE model_references SET origin = 'windows' WHERE origin = 'offline'")
    op.execute(
        "ALTER TABLE model_references DROP CONSTRAINT model_references_origin_check, "
        "ADD CONSTRAINT model_references_origin_check "
        "CHECK (origin IN ('windows', 'first_requests', 'previous_version'))"
    )
    for column in ("design_effect", "design_estimate", "design_windows", "design_requests"):
        op.execute(f"ALTER TABLE reference_probes DROP COLUMN {column}")
