"""What agents are doing now, how far each partition is ingested, and what no check has seen.

Agents' states are computed in one place, the function `agent_states_at`, for SQL and for the detector's metrics alike.
Who deployed a version before there were heartbeats is taken to serve it, as heard at its last window.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TABLES = """
ALTER TABLE ingest_offsets
    ADD COLUMN complete_to timestamptz,
    ADD COLUMN unbroken_since timestamptz,
    ADD COLUMN broken_at timestamptz,
    ADD COLUMN topic_id text;
UPDATE ingest_offsets SET complete_to = to_timestamp(0);
ALTER TABLE windows ADD COLUMN late bigint NOT NULL DEFAULT 0;
CREATE TABLE version_progress (
    model_version_id integer PRIMARY KEY REFERENCES model_versions,
    checked bigint NOT NULL DEFAULT 0,
    passed_over bigint NOT NULL DEFAULT 0,
    late bigint NOT NULL DEFAULT 0
);
CREATE TABLE heartbeats (
    agent_id text NOT NULL,
    model text NOT NULL,
    version text NOT NULL,
    digest text NOT NULL,
    topic text,
    partition integer,
    boot_epoch bigint NOT NULL,
    seq bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('serving', 'stopped', 'refused')),
    since timestamptz NOT NULL,
    heard_at timestamptz NOT NULL,
    last_window_at timestamptz,
    interval_seconds double precision,
    silent_seconds double precision NOT NULL,
    blind_seconds double precision NOT NULL,
    blind_requests double precision NOT NULL,
    sample_rate double precision NOT NULL,
    requests bigint NOT NULL,
    sampled bigint NOT NULL,
    replayed bigint NOT NULL,
    rejected bigint NOT NULL,
    dropped bigint NOT NULL,
    requests_then bigint NOT NULL,
    sampled_then bigint NOT NULL,
    waiting_since timestamptz,
    waiting_moved_at timestamptz,
    clock_error_seconds double precision,
    PRIMARY KEY (agent_id, model, version, digest)
);
CREATE INDEX heartbeats_by_version ON heartbeats (model, version, digest, heard_at);
"""

_SEED = """
INSERT INTO heartbeats
SELECT DISTINCT ON (d.agent_id, v.model)
       d.agent_id, v.model, v.version, v.digest, NULL, NULL, 0, 0, 'serving', d.at,
       greatest(d.at, w.last), w.last, NULL, 600, 600, 100, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL
FROM deployments d
JOIN model_versions v ON v.id = d.model_version_id
LEFT JOIN LATERAL (
    SELECT max(a.window_end) AS last FROM agent_windows a JOIN probes p ON p.id = a.probe_id
    WHERE p.model_version_id = v.id AND a.agent_id = d.agent_id AND a.window_start > now() - interval '7 days'
) w ON true
WHERE greatest(d.at, w.last) > now() - interval '7 days'
ORDER BY d.agent_id, v.model, d.at DESC, d.id DESC;
"""

_STATES = """
CREATE FUNCTION agent_states_at(at timestamptz) RETURNS TABLE (
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
                 AND k.known_to - greatest(h.since, h.last_window_at) > make_interval(secs => h.blind_seconds)
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
CREATE VIEW agent_states AS SELECT * FROM agent_states_at(now());
"""

_PROGRESS = """
CREATE VIEW ingest_progress AS
SELECT v.id AS model_version_id, v.model, v.version, v.digest,
       o.topic, o.partition, o.complete_to, s.batch_end AS checked_to,
       coalesce(p.checked, 0) AS checked, coalesce(p.passed_over, 0) AS passed_over, coalesce(p.late, 0) AS late
FROM model_versions v
LEFT JOIN version_progress p ON p.model_version_id = v.id
LEFT JOIN alarm_states s ON s.model_version_id = v.id
LEFT JOIN LATERAL (
    SELECT h.topic, h.partition FROM heartbeats h
    WHERE h.model = v.model AND h.version = v.version AND h.digest = v.digest
    ORDER BY h.heard_at DESC LIMIT 1
) h ON true
LEFT JOIN ingest_offsets o ON o.topic = h.topic AND o.partition = h.partition
"""

_LAYER_HEALTH = """
CREATE VIEW layer_health AS
SELECT v.id AS model_version_id, v.model, v.version, v.digest,
       p.name AS layer, p.kind, p.op, p.position,
       w.window_start, w.window_end, w.n,
       cardinality(w.active) AS channels,
       c.active_share, c.sparsity, c.silent_channels, c.mean, c.max, c.nonfinite {more}
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


def upgrade() -> None:
    """Makes the tables and views; `layer_health` says how much of a window came too late."""
    op.execute(_TABLES)
    op.execute(_SEED)
    op.execute(_STATES)
    op.execute(_PROGRESS)
    op.execute("DROP VIEW layer_health")
    op.execute(_LAYER_HEALTH.format(more=", w.late"))


def downgrade() -> None:
    """Drops them; windows stay as they are, with what came late."""
    op.execute("DROP VIEW ingest_progress")
    op.execute("DROP VIEW agent_states")
    op.execute("DROP FUNCTION agent_states_at(timestamptz)")
    op.execute("DROP VIEW layer_health")
    op.execute(_LAYER_HEALTH.format(more=""))
    op.execute("DROP TABLE heartbeats")
    op.execute("DROP TABLE version_progress")
    op.execute("ALTER TABLE windows DROP COLUMN late")
    op.execute(
        "ALTER TABLE ingest_offsets DROP COLUMN complete_to, DROP COLUMN unbroken_since, DROP COLUMN broken_at, "
        "DROP COLUMN topic_id"
    )
