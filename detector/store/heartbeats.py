"""The newest that is known of every agent and model version: a small table of current state.

Heartbeats, windows and deployments all are signs of life. A heartbeat is not remembered by its key as other messages
are: of one start of an agent the newest holds, and another start is another story.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from agent.wire import Deployment, Envelope, Heartbeat, Window
from detector.domain.agents import AgentState, Heard
from detector.domain.settings import AgentLimits
from detector.store.merging import moment
from detector.store.tables import heartbeats

MOST_AGENTS = 1000
"""Of a model version, those heard last; the rest is forgotten by the next housekeeping."""
FORGET = timedelta(days=7)
"""Agents silent for longer are forgotten, and with the last of them its version's gap."""
MISSED = 3
_SLACK_SECONDS = 15.0
"""An agent is silent once so many heartbeats, and this, have passed without one."""
_WINDOWS = 3
Key = tuple[str, str, str, str]
_KEY = ("agent_id", "model", "version", "digest")
_COUNTS = ("requests", "sampled", "replayed", "rejected", "dropped", "held")
_STATES = text("SELECT * FROM agent_states_at(:at) WHERE heard_at > :oldest ORDER BY model, version, digest, agent_id")
_OF_VERSION = text("SELECT * FROM agent_states_at(:at) WHERE model_version_id = :id")
_CROWDED = text(
    """
    DELETE FROM heartbeats h USING (
        SELECT agent_id, model, version, digest,
               row_number() OVER (PARTITION BY model, version, digest ORDER BY heard_at DESC, agent_id) AS rank
        FROM heartbeats
    ) r
    WHERE (h.agent_id, h.model, h.version, h.digest) = (r.agent_id, r.model, r.version, r.digest)
      AND (r.rank > :most OR h.heard_at < :oldest)
    """
)


def record(
    connection: Connection,
    topic: str,
    partition: int,
    envelopes: Sequence[Envelope],
    heard: Sequence[Heard],
    limits: AgentLimits,
) -> None:
    """Brings the rows of a batch's agents up to date; ``heard`` says when each of the envelopes was heard."""
    rows = _known(connection, {_key(envelope) for envelope in envelopes})
    for envelope, told in zip(envelopes, heard, strict=True):
        body = envelope.body
        began = min(moment(body.at_ms), told.at) if isinstance(body, Deployment) else told.at
        row = rows.setdefault(_key(envelope), _blank(envelope, began, limits))
        row |= {"topic": topic, "partition": partition, "heard_at": max(row["heard_at"], told.at)}
        if isinstance(body, Heartbeat):
            _beat(row, envelope, body, told, limits)
        elif isinstance(body, Deployment):
            row |= {"status": "serving", "since": max(row["since"], began)}
            _replaced(connection, envelope, rows, row["since"])
        elif isinstance(body, Window) and any(item.summary.n for item in body.probes):
            row |= {"last_window_at": told.at, "requests_then": row["requests"], "sampled_then": row["sampled"]}
            if row["status"] == "stopped" and row["interval_seconds"] is None:
                replaced_at = _newest_without_heartbeats(connection, envelope, rows)
                if replaced_at is not None and moment(body.start_ms) >= replaced_at:
                    row["status"] = "serving"
    if rows:
        upsert = insert(heartbeats)
        names = [column.name for column in heartbeats.columns if column.name not in _KEY]
        upsert = upsert.on_conflict_do_update(
            index_elements=list(_KEY), set_={name: upsert.excluded[name] for name in names}
        )
        connection.execute(upsert, [rows[key] for key in sorted(rows)])


def states(connection: Connection, now: datetime) -> list[AgentState]:
    """See `Store.agent_states`."""
    rows = connection.execute(_STATES, {"at": now, "oldest": now - FORGET})
    return [AgentState(**row) for row in rows.mappings()]


def of_version(connection: Connection, version_id: int, now: datetime) -> list[AgentState]:
    """The agents of one model version."""
    rows = connection.execute(_OF_VERSION, {"at": now, "id": version_id})
    return [AgentState(**row) for row in rows.mappings()]


def forget(connection: Connection, now: datetime) -> None:
    """Keeps the table within its bounds: `MOST_AGENTS` of each version, `FORGET` at most."""
    connection.execute(_CROWDED, {"most": MOST_AGENTS, "oldest": now - FORGET})


def clock_errors(connection: Connection) -> dict[str, float]:
    """Seconds by agent, as measured last."""
    table = heartbeats.c
    query = select(table.agent_id, table.clock_error_seconds).where(table.clock_error_seconds.is_not(None))
    return {row.agent_id: row.clock_error_seconds for row in connection.execute(query.order_by(table.heard_at))}


def _key(envelope: Envelope) -> Key:
    return envelope.agent_id, envelope.model, envelope.version, envelope.digest


def _known(connection: Connection, keys: set[Key]) -> dict[Key, dict[str, Any]]:
    if not keys:
        return {}
    columns = tuple_(*(heartbeats.c[name] for name in _KEY))
    found = connection.execute(select(heartbeats).where(columns.in_(sorted(keys)))).mappings()
    return {(row["agent_id"], row["model"], row["version"], row["digest"]): dict(row) for row in found}


def _blank(envelope: Envelope, at: datetime, limits: AgentLimits) -> dict[str, Any]:
    none = ("last_window_at", "interval_seconds", "waiting_since", "waiting_moved_at", "clock_error_seconds", "held_at")
    zero = ("boot_epoch", "seq", "sample_rate", *_COUNTS, "requests_then", "sampled_then")
    return {
        **dict(zip(_KEY, _key(envelope), strict=True)),
        "status": "serving",
        "since": at,
        "heard_at": at,
        "silent_seconds": limits.silent_seconds,
        "blind_seconds": limits.blind_seconds,
        "blind_requests": limits.blind_requests,
        **dict.fromkeys(none),
        **dict.fromkeys(zero, 0),
    }


def _beat(row: dict[str, Any], envelope: Envelope, body: Heartbeat, told: Heard, limits: AgentLimits) -> None:
    again = row["boot_epoch"] == envelope.boot_epoch
    if again and envelope.seq <= row["seq"]:
        return
    if not again:
        # Another start of the agent, whose counts begin anew: what it missed before is no fault of this one.
        row |= {"since": max(row["since"], told.at), "requests_then": 0, "sampled_then": 0, "held": 0}
    elif row["status"] != body.status:
        row |= {"since": max(row["since"], told.at), "requests_then": body.requests, "sampled_then": body.sampled}
    if body.held > row["held"]:  # it sees its requests, too few of them for a window
        row |= {"held_at": told.at, "requests_then": body.requests, "sampled_then": body.sampled}
    interval, window = body.interval_ms / 1000, body.window_ms / 1000
    waiting = None if body.waiting_since_ms is None else moment(body.waiting_since_ms)
    if waiting != row["waiting_since"]:
        row["waiting_moved_at"] = told.at
    row |= {
        "boot_epoch": envelope.boot_epoch,
        "seq": envelope.seq,
        "status": body.status,
        "interval_seconds": interval,
        "silent_seconds": MISSED * interval + _SLACK_SECONDS,
        "blind_seconds": max(limits.blind_seconds, _WINDOWS * window),
        "blind_requests": limits.blind_requests,
        "sample_rate": body.sample_rate,
        "waiting_since": waiting,
        **{name: getattr(body, name) for name in _COUNTS},
    }
    if told.clock_error is not None:
        row["clock_error_seconds"] = told.clock_error


def _replaced(connection: Connection, envelope: Envelope, rows: dict[Key, dict[str, Any]], since: datetime) -> None:
    """An agent that sends no heartbeats says no farewell: what it deploys takes the place of what it had before.

    Unless it serves both: a window of the former version that begins after the deployment says so, see `record`.
    """
    for key, row in rows.items():
        mine = key[:2] == (envelope.agent_id, envelope.model) and key != _key(envelope)
        if mine and row["interval_seconds"] is None and row["since"] < since:
            row["status"] = "stopped"
    table = heartbeats.c
    connection.execute(
        update(heartbeats)
        .where(
            table.agent_id == envelope.agent_id,
            table.model == envelope.model,
            or_(table.version != envelope.version, table.digest != envelope.digest),
            table.interval_seconds.is_(None),
            table.since < since,
        )
        .values(status="stopped")
    )


def _newest_without_heartbeats(
    connection: Connection, envelope: Envelope, rows: dict[Key, dict[str, Any]]
) -> datetime | None:
    """When the agent, which sends no heartbeats, last deployed another version of the model."""
    found = {
        key: row["since"]
        for key, row in rows.items()
        if key[:2] == (envelope.agent_id, envelope.model) and row["interval_seconds"] is None
    }
    table = heartbeats.c
    stored = select(heartbeats).where(
        table.agent_id == envelope.agent_id, table.model == envelope.model, table.interval_seconds.is_(None)
    )
    for row in connection.execute(stored).mappings():
        found.setdefault((row["agent_id"], row["model"], row["version"], row["digest"]), row["since"])
    found.pop(_key(envelope), None)
    return max(found.values(), default=None)
