"""Tables of what agents tell: versions, windows, comparisons, and how far all this is ingested."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Double,
    Integer,
    Table,
    Text,
)

from detector.store.tables.columns import id_column, metadata, numbers, summary_columns, text, time

COMPARISON_COUNTS = (
    "n", "top1_n", "top1_agree", "accuracy_n", "served_correct", "baseline_correct", "baseline_n",
    "only_served_correct", "only_baseline_correct", "mismatched",
)  # fmt: skip
"""Counts of requests that a comparison adds up, named as in `agent.wire.Comparison`."""

KINSHIP_SUMS = ("served", "former", "served_sq", "former_sq", "product", "neighbour_product")
"""Sums by channel that a kinship adds up, named as in `agent.wire.LayerKinship`."""

model_versions = Table("model_versions", metadata, id_column(), *text("model", "version", "digest"), time("first_seen"))

deployments = Table(
    "deployments", metadata, id_column(), Column("model_version_id", Integer), *text("agent_id", "provider"), time("at")
)

probes = Table(
    "probes",
    metadata,
    id_column(),
    *numbers(Integer, "model_version_id"),
    *text("name", "op", "tensor", "kind"),
    Column("channels", Integer),
    *numbers(Integer, "axis", "position"),
    Column("exact_zero", Boolean, nullable=False),
)

windows = Table(
    "windows",
    metadata,
    *numbers(Integer, "model_version_id"),
    Column("probe_id", Integer, primary_key=True),
    time("window_start", primary_key=True),
    time("window_end", primary_key=True),
    *summary_columns(),
    *numbers(BigInteger, "late"),
)

agent_windows = Table(
    "agent_windows",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("probe_id", Integer, primary_key=True),
    time("window_start", primary_key=True),
    time("window_end", primary_key=True),
    *numbers(BigInteger, "n"),
    *numbers(Double, "active_share", "mean"),
    Column("max", Double),
    *numbers(BigInteger, "nonfinite"),
)

comparison_sources = Table(
    "comparison_sources",
    metadata,
    id_column(),
    *numbers(Integer, "model_version_id"),
    *text("kind", "baseline", "baseline_digest", "reference", "provider", "agent_id"),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("source_id", Integer, primary_key=True),
    time("window_start", primary_key=True),
    time("window_end", primary_key=True),
    *numbers(BigInteger, *COMPARISON_COUNTS),
)

probe_comparisons = Table(
    "probe_comparisons",
    metadata,
    Column("source_id", Integer, primary_key=True),
    Column("probe_id", Integer, primary_key=True),
    time("window_start", primary_key=True),
    time("window_end", primary_key=True),
    *numbers(BigInteger, "n", "elements"),
    *numbers(Double, "signal", "power", "noise", "cross_sum", "max_abs_error"),
    *numbers(BigInteger, "mismatched", "nonfinite"),
    *numbers(ARRAY(BigInteger), "only_served_active", "only_baseline_active"),
)

kinships = Table(
    "kinships",
    metadata,
    Column("model_version_id", Integer, primary_key=True),
    Column("former_digest", Text, primary_key=True),
    Column("layer", Text, primary_key=True),
    *numbers(BigInteger, "n"),
    *numbers(ARRAY(Double), *KINSHIP_SUMS),
    *numbers(BigInteger, "broken"),
)

ingest_keys = Table(
    "ingest_keys",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("boot_epoch", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    time("received_at"),
)

ingest_offsets = Table(
    "ingest_offsets",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    *numbers(BigInteger, "next_offset"),
    *(time(name, null=True) for name in ("complete_to", "unbroken_since", "broken_at")),
    *text("topic_id", null=True),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("agent_id", "model", "version", "digest")),
    Column("topic", Text),
    Column("partition", Integer),
    *numbers(BigInteger, "boot_epoch", "seq"),
    *text("status"),
    time("since"),
    time("heard_at"),
    time("last_window_at", null=True),
    Column("interval_seconds", Double),
    *numbers(Double, "silent_seconds", "blind_seconds", "blind_requests", "sample_rate"),
    *numbers(BigInteger, "requests", "sampled", "replayed", "rejected", "dropped", "requests_then", "sampled_then"),
    time("waiting_since", null=True),
    time("waiting_moved_at", null=True),
    Column("clock_error_seconds", Double),
    *numbers(BigInteger, "held"),
    time("held_at", null=True),
)
