"""The tables as SQLAlchemy sees them. The migrations make them; a test holds the two alike."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

COMPARISON_COUNTS = (
    "n", "top1_n", "top1_agree", "accuracy_n", "served_correct", "baseline_correct", "baseline_n",
    "only_served_correct", "only_baseline_correct", "mismatched",
)  # fmt: skip
"""Counts of requests that a comparison adds up, named as in `agent.wire.Comparison`."""


KINSHIP_SUMS = ("served", "former", "served_sq", "former_sq", "product", "neighbour_product")
"""Sums by channel that a kinship adds up, named as in `agent.wire.LayerKinship`."""


def _id() -> Column[int]:
    return Column("id", Integer, primary_key=True)


def _time(name: str, *, null: bool = False, primary_key: bool = False) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=null, primary_key=primary_key)


def _summary_columns() -> list[Column[Any]]:
    counts: list[Column[Any]] = [Column(name, ARRAY(BigInteger), nullable=False) for name in ("active", "nonfinite")]
    values: list[Column[Any]] = [
        Column(name, ARRAY(Double), nullable=False)
        for name in ("fraction_sum", "fraction_sq_sum", "mean", "m2", "min", "max")
    ]
    sketch: list[Column[Any]] = [
        Column("sketch", LargeBinary, nullable=False),
        Column("sketch_version", SmallInteger, nullable=False),
    ]
    return [Column("n", BigInteger, nullable=False), *counts, *values, *sketch]


def _design_columns() -> list[Column[Any]]:
    return [
        Column("design_effect", ARRAY(Double)),
        Column("design_estimate", Double),
        Column("design_windows", Integer),
        Column("design_requests", Double),
        Column("sparsity_variance", Double),
        Column("sparsity_design", Double),
    ]


def _text(*names: str, null: bool = False) -> list[Column[str]]:
    return [Column(name, Text, nullable=null) for name in names]


def _numbers(kind: Any, *names: str) -> list[Column[Any]]:
    return [Column(name, kind, nullable=False) for name in names]


model_versions = Table("model_versions", metadata, _id(), *_text("model", "version", "digest"), _time("first_seen"))

deployments = Table(
    "deployments", metadata, _id(), Column("model_version_id", Integer), *_text("agent_id", "provider"), _time("at")
)

probes = Table(
    "probes",
    metadata,
    _id(),
    *_numbers(Integer, "model_version_id"),
    *_text("name", "op", "tensor", "kind"),
    Column("channels", Integer),
    *_numbers(Integer, "axis", "position"),
    Column("exact_zero", Boolean, nullable=False),
)

windows = Table(
    "windows",
    metadata,
    *_numbers(Integer, "model_version_id"),
    Column("probe_id", Integer, primary_key=True),
    _time("window_start", primary_key=True),
    _time("window_end", primary_key=True),
    *_summary_columns(),
    *_numbers(BigInteger, "late"),
)

agent_windows = Table(
    "agent_windows",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("probe_id", Integer, primary_key=True),
    _time("window_start", primary_key=True),
    _time("window_end", primary_key=True),
    *_numbers(BigInteger, "n"),
    *_numbers(Double, "active_share", "mean"),
    Column("max", Double),
    *_numbers(BigInteger, "nonfinite"),
)

comparison_sources = Table(
    "comparison_sources",
    metadata,
    _id(),
    *_numbers(Integer, "model_version_id"),
    *_text("kind", "baseline", "baseline_digest", "reference", "provider", "agent_id"),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("source_id", Integer, primary_key=True),
    _time("window_start", primary_key=True),
    _time("window_end", primary_key=True),
    *_numbers(BigInteger, *COMPARISON_COUNTS),
)

probe_comparisons = Table(
    "probe_comparisons",
    metadata,
    Column("source_id", Integer, primary_key=True),
    Column("probe_id", Integer, primary_key=True),
    _time("window_start", primary_key=True),
    _time("window_end", primary_key=True),
    *_numbers(BigInteger, "n", "elements"),
    *_numbers(Double, "signal", "power", "noise", "cross_sum", "max_abs_error"),
    *_numbers(BigInteger, "mismatched", "nonfinite"),
    *_numbers(ARRAY(BigInteger), "only_served_active", "only_baseline_active"),
)

ingest_keys = Table(
    "ingest_keys",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("boot_epoch", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    _time("received_at"),
)

ingest_offsets = Table(
    "ingest_offsets",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    *_numbers(BigInteger, "next_offset"),
    *(_time(name, null=True) for name in ("complete_to", "unbroken_since", "broken_at")),
    *_text("topic_id", null=True),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    *(Column(name, Text, primary_key=True) for name in ("agent_id", "model", "version", "digest")),
    Column("topic", Text),
    Column("partition", Integer),
    *_numbers(BigInteger, "boot_epoch", "seq"),
    *_text("status"),
    _time("since"),
    _time("heard_at"),
    _time("last_window_at", null=True),
    Column("interval_seconds", Double),
    *_numbers(Double, "silent_seconds", "blind_seconds", "blind_requests", "sample_rate"),
    *_numbers(BigInteger, "requests", "sampled", "replayed", "rejected", "dropped", "requests_then", "sampled_then"),
    _time("waiting_since", null=True),
    _time("waiting_moved_at", null=True),
    Column("clock_error_seconds", Double),
)

version_progress = Table(
    "version_progress",
    metadata,
    Column("model_version_id", Integer, primary_key=True),
    *_numbers(BigInteger, "checked", "passed_over", "late"),
)

model_references = Table(
    "model_references",
    metadata,
    _id(),
    *_numbers(Integer, "model_version_id"),
    *_text("origin"),
    *_numbers(Integer, "source_version_id"),
    _time("window_start"),
    _time("window_end"),
    *_numbers(BigInteger, "n"),
    _time("created_at"),
    Column("active", Boolean, nullable=False),
    *_text("made_by", "why", null=True),
    Column("accepts", ARRAY(Text), nullable=False),
)

reference_policy_changes = Table(
    "reference_policy_changes",
    metadata,
    _id(),
    *_text("model", "policy"),
    Column("reference_id", Integer),
    *_text("made_by", "why"),
    _time("made_at"),
)

kinships = Table(
    "kinships",
    metadata,
    Column("model_version_id", Integer, primary_key=True),
    Column("former_digest", Text, primary_key=True),
    Column("layer", Text, primary_key=True),
    *_numbers(BigInteger, "n"),
    *_numbers(ARRAY(Double), *KINSHIP_SUMS),
    *_numbers(BigInteger, "broken"),
)

reference_hours = Table(
    "reference_hours",
    metadata,
    Column("reference_id", Integer, primary_key=True),
    Column("weekday", SmallInteger, primary_key=True),
    Column("hour", SmallInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    *_summary_columns(),
    *_design_columns(),
)

reference_probes = Table(
    "reference_probes",
    metadata,
    Column("reference_id", Integer, primary_key=True),
    Column("name", Text, primary_key=True),
    *_summary_columns(),
    *_design_columns(),
)

check_turns = Table("check_turns", metadata, Column("model_version_id", Integer, primary_key=True), _time("next_due"))

alarm_states = Table(
    "alarm_states",
    metadata,
    Column("model_version_id", Integer, primary_key=True),
    *_numbers(Integer, "reference_id"),
    _time("batch_start"),
    _time("batch_end"),
    *_numbers(BigInteger, "n"),
    *_numbers(Integer, "windows"),
)

alarm_families = Table(
    "alarm_families",
    metadata,
    Column("model_version_id", Integer, primary_key=True),
    Column("family", Text, primary_key=True),
    *_numbers(Double, "days"),
    Column("alarm", Boolean, nullable=False),
)

alarm_layers = Table(
    "alarm_layers",
    metadata,
    Column("model_version_id", Integer, primary_key=True),
    Column("family", Text, primary_key=True),
    Column("layer", Text, primary_key=True),
    Column("evidence", ARRAY(Double), nullable=False),
)

checks = Table(
    "checks",
    metadata,
    _id(),
    *_numbers(Integer, "model_version_id"),
    Column("reference_id", Integer),
    _time("started_at"),
    _time("finished_at"),
    _time("window_start", null=True),
    _time("window_end", null=True),
    *_numbers(BigInteger, "n"),
    *_text("status", "note"),
    Column("layers", JSONB, nullable=False),
    Column("alarms", JSONB, nullable=False),
    Column("comparisons", JSONB, nullable=False),
)

findings = Table(
    "findings",
    metadata,
    _id(),
    *_numbers(Integer, "check_id"),
    *_text("layer", "kind"),
    *_numbers(Integer, "position"),
    *_text("test", "cause", "severity"),
    Column("origin", Boolean, nullable=False),
    Column("channels", ARRAY(Integer), nullable=False),
    *_numbers(Integer, "channels_total"),
    *_numbers(Double, "statistic", "p_value", "effect"),
    *_numbers(BigInteger, "n", "n_reference"),
    *_text("summary", "alert"),
    Column("evidence", JSONB, nullable=False),
    Column("details", JSONB, nullable=False),
    *_text("runbook_name", null=True),
    Column("runbook_version", Integer),
)

runbooks = Table(
    "runbooks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    *_text("sha256", "body", "severity", "cause", "owner"),
    _time("registered_at"),
)

alerts = Table(
    "alerts",
    metadata,
    _id(),
    *_text("fingerprint", "alertname", "status"),
    *_text("severity", "model", "version", "layer", "cause", null=True),
    _time("starts_at"),
    _time("ends_at", null=True),
    Column("labels", JSONB, nullable=False),
    Column("annotations", JSONB, nullable=False),
    *_text("runbook_name", null=True),
    Column("runbook_version", Integer),
    _time("received_at"),
    _time("seen_at"),
    *_text("held_back"),
    Column("holds", JSONB, nullable=False),
    *_text("ended_by"),
)
