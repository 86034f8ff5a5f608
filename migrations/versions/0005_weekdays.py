"""References by weekday and hour, beside those by hour; hours that are there already stay, as hours of any day.

`dead_channels` says which slot of the reference the check compared with.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_UP = """
ALTER TABLE reference_hours
    ADD COLUMN weekday smallint NOT NULL DEFAULT 0 CHECK (weekday BETWEEN 0 AND 7),
    DROP CONSTRAINT reference_hours_pkey;
ALTER TABLE reference_hours
    ALTER COLUMN weekday DROP DEFAULT,
    ADD PRIMARY KEY (reference_id, weekday, hour, name);
"""

_DOWN = """
DELETE FROM reference_hours WHERE weekday <> 0;
ALTER TABLE reference_hours DROP CONSTRAINT reference_hours_pkey;
ALTER TABLE reference_hours DROP COLUMN weekday, ADD PRIMARY KEY (reference_id, hour, name);
"""

_DEAD_CHANNELS = """
CREATE OR REPLACE VIEW dead_channels AS
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
       f.cause, f.severity, f.origin, f.alert, f.runbook_name, f.runbook_version {more}
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


def upgrade() -> None:
    """ISO weekdays, 1 to 7; 0 is any day."""
    op.execute(_UP)
    op.execute(_DEAD_CHANNELS.format(more=", f.details ->> 'compared_with' AS compared_with"))


def downgrade() -> None:
    """Drops the weekdays; the former release compares with their hours instead."""
    op.execute(_DOWN)
    op.execute("DROP VIEW dead_channels")
    op.execute(_DEAD_CHANNELS.format(more=""))
