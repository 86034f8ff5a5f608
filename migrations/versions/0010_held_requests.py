"""An agent that holds requests back, for they are too few to be told of, sees them: it is not blind."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_STATES = """
CREATE OR REPLACE FUNCTION agent_states_at(at timestamptz) RETURNS TABLE (
    model_version_id integer, model text, version text, digest text, agent_id text, state text,
    first_seen timestamptz, since timestamptz, heard_at timestamptz, known_to timestamptz, last_window_at timestamptz,
    interval_seconds double precision, clock_error_seconds double precision,
    requests bigint, sampled bigint, replayed bigint, rejected bigint, dropped bigint,
    missed double precision, silent_seconds double precision, waiting_since timestamptz, waiting_moved_at timestamptz
) LANGUAGE sql STABLE AS $$
SELECT v.id, h.model, h.version, h.digest, h.agent_id,
       CASE WHEN h.status = 'stopped' THEN 'stopped'
            WHEN k.known_to - h.heard_at > make_interval(secs => h.silent_seconds) THEN 'silent'
            WHEN h.status = 'refused' THEN 'blind'
            WHEN m.missed >= h.blind_requests
                 AND k.known_to - {seen} > make_interval(secs => h.blind_seconds)
                 THEN 'blind'
            WHEN k.known_to - h.last_window_at <= make_interval(secs => h.blind_seconds) THEN 'observing'
            ELSE 'idle' END,
       v.first_seen, h.since, h.heard_at, k.known_to, h.last_window_at, h.interval_seconds, h.clock_error_seconds,
       h.requests, h.sampled, h.replayed, h.rejected, h.dropped, m.missed,
       h.silent_seconds, h.waiting_since, h.waiting_moved_at
FROM heartbeats h
LEFT JOIN model_versions v ON v.model = h.model AND v.version = h.version AND v.digest = h.digest
LEFT JOIN ingest_offsets o ON o.topic = h.topic AND o.partition = h.partition
CROSS JOIN LATERAL (SELECT least(at, coalesce(o.complete_to, at)) AS known_to) k
CROSS JOIN LATERAL (
    SELECT greatest(h.sampled - h.sampled_then, (h.requests - h.requests_then) * h.sample_rate) AS missed
) m
$$;
"""


def upgrade() -> None:
    """Keeps how many requests an agent has held back, and when that was last more than before."""
    op.execute("ALTER TABLE heartbeats ADD COLUMN held bigint NOT NULL DEFAULT 0, ADD COLUMN held_at timestamptz")
    op.execute(_STATES.format(seen="greatest(h.since, h.last_window_at, h.held_at)"))


def downgrade() -> None:
    """Forgets it."""
    op.execute(_STATES.format(seen="greatest(h.since, h.last_window_at)"))
    op.execute("ALTER TABLE heartbeats DROP COLUMN held, DROP COLUMN held_at")
