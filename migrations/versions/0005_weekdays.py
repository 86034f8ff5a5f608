"""References by weekday and hour, beside those by hour; hours that are there already stay, as hours of any day."""

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


def upgrade() -> None:
    """ISO weekdays, 1 to 7; 0 is any day."""
    op.execute(_UP)


def downgrade() -> None:
    """Drops the weekdays; the former release compares with their hours instead."""
    op.execute(_DOWN)
