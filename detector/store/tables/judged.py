"""Tables of what the detector makes of it: references, evidence, checks, findings, alerts."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Double,
    Integer,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB

from detector.store.tables.columns import design_columns, id_column, metadata, numbers, summary_columns, text, time

version_progress = Table(
    "version_progress",
    metadata,
    Column("model_version_id", Integer, primary_key=True),
    *numbers(BigInteger, "checked", "passed_over", "late"),
)

model_references = Table(
    "model_references",
    metadata,
    id_column(),
    *numbers(Integer, "model_version_id"),
    *text("origin"),
    *numbers(Integer, "source_version_id"),
    time("window_start"),
    time("window_end"),
    *numbers(BigInteger, "n"),
    time("created_at"),
    Column("active", Boolean, nullable=False),
    *text("made_by", "why", null=True),
    Column("accepts", ARRAY(Text), nullable=False),
)

reference_policy_changes = Table(
    "reference_policy_changes",
    metadata,
    id_column(),
    *text("model", "policy"),
    Column("reference_id", Integer),
    *text("made_by", "why"),
    time("made_at"),
)

reference_hours = Table(
    "reference_hours",
    metadata,
    Column("reference_id", Integer, primary_key=True),
    Column("weekday", SmallInteger, primary_key=True),
    Column("hour", SmallInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    *summary_columns(),
    *design_columns(),
)

reference_probes = Table(
    "reference_probes",
    metadata,
    Column("reference_id", Integer, primary_key=True),
    Column("name", Text, primary_key=True),
    *summary_columns(),
    *design_columns(),
)

check_turns = Table("check_turns", metadata, Column("model_version_id", Integer, primary_key=True), time("next_due"))

alarm_states = Table(
    "alarm_states",
    metadata,
    Column("model_version_id", Integer, primary_key=True),
    *numbers(Integer, "reference_id"),
    time("batch_start"),
    time("batch_end"),
    *numbers(BigInteger, "n"),
    *numbers(Integer, "windows"),
)

alarm_families = Table(
    "alarm_families",
    metadata,
    Column("model_version_id", Integer, primary_key=True),
    Column("family", Text, primary_key=True),
    *numbers(Double, "days"),
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
    id_column(),
    *numbers(Integer, "model_version_id"),
    Column("reference_id", Integer),
    time("started_at"),
    time("finished_at"),
    time("window_start", null=True),
    time("window_end", null=True),
    *numbers(BigInteger, "n"),
    *text("status", "note"),
    Column("layers", JSONB, nullable=False),
    Column("alarms", JSONB, nullable=False),
    Column("comparisons", JSONB, nullable=False),
)

findings = Table(
    "findings",
    metadata,
    id_column(),
    *numbers(Integer, "check_id"),
    *text("layer", "kind"),
    *numbers(Integer, "position"),
    *text("test", "cause", "severity"),
    Column("origin", Boolean, nullable=False),
    Column("channels", ARRAY(Integer), nullable=False),
    *numbers(Integer, "channels_total"),
    *numbers(Double, "statistic", "p_value", "effect"),
    *numbers(BigInteger, "n", "n_reference"),
    *text("summary", "alert"),
    Column("evidence", JSONB, nullable=False),
    Column("details", JSONB, nullable=False),
    *text("runbook_name", null=True),
    Column("runbook_version", Integer),
)

runbooks = Table(
    "runbooks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    *text("sha256", "body", "severity", "cause", "owner"),
    time("registered_at"),
)

alerts = Table(
    "alerts",
    metadata,
    id_column(),
    *text("fingerprint", "alertname", "status"),
    *text("severity", "model", "version", "layer", "cause", null=True),
    time("starts_at"),
    time("ends_at", null=True),
    Column("labels", JSONB, nullable=False),
    Column("annotations", JSONB, nullable=False),
    *text("runbook_name", null=True),
    Column("runbook_version", Integer),
    time("received_at"),
    time("seen_at"),
    *text("held_back"),
    Column("holds", JSONB, nullable=False),
    *text("ended_by"),
)
