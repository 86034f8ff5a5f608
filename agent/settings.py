"""What `reluscope agent` is told."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.budget.settings import BudgetSettings
from agent.capture.settings import CaptureSettings
from agent.delivery.small_groups import MinGroup
from agent.logging import Format
from agent.options import KIB, MIB, SECTION, Kafka, Option
from agent.paired.settings import PairedSettings
from agent.rates.governor import Budgets
from agent.serving.settings import FollowingSettings


@dataclass(frozen=True, kw_only=True, config=SECTION)
class AgentSettings:
    """Every option of the command, those of the sections among them; `agent.options` makes the options."""

    repository: Path
    """<model>/<version>/model.onnx below."""
    kafka: Kafka
    state_dir: Path
    """Folder for the outbox; survives restarts."""
    host: str = "127.0.0.1"
    """Address for mirrored requests and /metrics."""
    port: int = Field(default=8400, ge=0, le=65535)
    """0 takes any free port."""
    max_connections: int = Field(default=1024, ge=1)
    """Connections of clients at a time, at most half of the files that the process may open."""
    agent_id: Annotated[str, Option(default="host name")] = Field(default_factory=socket.gethostname)
    """Name of this pod in every window."""
    sample_rate: float = Field(default=0.05, ge=0, le=1)
    """Share of requests that is replayed."""
    rows_per_request: int = Field(default=1, ge=1)
    """Rows of a request, drawn at random, that are replayed; each counts as a request."""
    capture: CaptureSettings
    budgets: Budgets
    budget: BudgetSettings
    following: FollowingSettings
    window_seconds: float = Field(default=60.0, ge=0.1)
    """Length of a window."""
    window_grace_seconds: float = Field(default=1.0, ge=0)
    """How long a window waits for its last requests."""
    group: MinGroup
    heartbeat_seconds: float = Field(default=30.0, ge=0.1, le=3600)
    """How often the agent says that it lives; it counts as silent once three of these were missed."""
    queue_bytes: Annotated[int, Option("queue_mib", unit=MIB)] = Field(default=64 * MIB, ge=1)
    """Memory for requests that wait for replay."""
    queue_items: int = Field(default=4096, ge=1)
    """Requests that may wait for replay."""
    max_body_bytes: Annotated[int, Option("max_body_mib", unit=MIB)] = Field(default=16 * MIB, ge=1)
    """Largest request body."""
    outbox_bytes: Annotated[int, Option("outbox_mib", unit=MIB)] = Field(default=512 * MIB, ge=1)
    """Disk for messages that Kafka has not acknowledged."""
    outbox_damaged: int = Field(default=2, ge=0)
    """Damaged outbox files that are kept."""
    max_message_bytes: Annotated[int, Option("max_message_kib", unit=KIB)] = Field(default=896 * KIB, ge=16 * KIB)
    """Larger windows are split by probe."""
    compression: Literal["gzip", "zstd", "none"] = "gzip"
    """Of Kafka messages."""
    in_flight_bytes: Annotated[int, Option("in_flight_mib", unit=MIB)] = Field(default=32 * MIB, ge=1)
    """Memory for messages on their way to Kafka."""
    paired: PairedSettings
    log_format: Format = "console"
    """json where a machine reads the log."""
