"""Heartbeats: steady, newest only, with a farewell; nothing counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import wire
from agent.delivery.heartbeats import Heartbeats, Rhythm, Standing
from agent.delivery.outbox import Outbox
from agent.delivery.transport import Publisher
from agent.metrics import AgentMetrics
from deploy.local.broker import Broker
from deploy.local.ports import free_port
from tests.agent.delivery.test_transport import Running, eventually, received

V1, V2, BROKEN = Standing("digits", "1", "d1"), Standing("digits", "2", "d2"), Standing("digits", "3", "")


class Agent:
    """What heartbeats are made of, under a clock of the test's own."""

    def __init__(self, path: Path) -> None:
        self.outbox = Outbox(path, 1 << 20)
        self.metrics = AgentMetrics()
        self.serving = [V1]
        self.now = 0.0
        self.heartbeats = Heartbeats(
            "pod-1",
            self.outbox.boot_epoch,
            Rhythm(30_000, 60_000, 0.05),
            lambda: self.serving,
            lambda model, version: self.metrics.tally(model, version).read(),
            self.outbox.oldest,
            clock_ms=lambda: 1_000_000 + int(self.now * 1000),
            monotonic=lambda: self.now,
        )

    def beat(self) -> list[tuple[str, str]]:
        """Versions and statuses said now, and delivered."""
        if not self.heartbeats.due():
            return []
        made = self.heartbeats.make()
        self.heartbeats.delivered(made)
        return [(e.version, e.body.status) for e in made if isinstance(e.body, wire.Heartbeat)]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "outbox.db")
    yield agent
    agent.outbox.close()


def body(envelope: wire.Envelope) -> wire.Heartbeat:
    assert isinstance(envelope.body, wire.Heartbeat)
    return envelope.body


def test_they_come_at_a_steady_interval(agent: Agent) -> None:
    assert agent.beat() == [("1", "serving")]
    agent.now = 29.9
    assert agent.beat() == []
    agent.now = 30.0
    assert agent.beat() == [("1", "serving")]


def test_nothing_is_said_where_nothing_is_served(agent: Agent) -> None:
    agent.serving = []
    agent.now = 99.0
    assert agent.beat() == []


def test_what_is_replaced_gets_its_farewell_at_once_and_once(agent: Agent) -> None:
    agent.beat()
    agent.now, agent.serving = 1.0, [V2]
    assert agent.beat() == [("1", "stopped"), ("2", "serving")]
    assert agent.beat() == []
    agent.heartbeats.leave()
    assert agent.beat() == [("2", "stopped")]
    agent.now = 99.0
    assert agent.beat() == []


def test_a_refused_version_is_said_beside_the_one_that_serves(agent: Agent) -> None:
    agent.serving = [V1, BROKEN]
    assert agent.beat() == [("1", "serving"), ("3", "refused")]
    agent.serving = [V1]
    assert agent.beat() == [("3", "stopped"), ("1", "serving")]


def test_what_was_not_delivered_is_made_anew_with_the_counts_of_that_moment(agent: Agent) -> None:
    tally = agent.metrics.tally("digits", "1")
    tally.count("requests", 10)
    [lost] = agent.heartbeats.make()
    tally.count("requests", 5)
    tally.count("sampled")
    agent.now = 3.0
    assert agent.heartbeats.due()
    [made] = agent.heartbeats.make()
    assert (body(lost).requests, body(made).requests, body(made).sampled) == (10, 15, 1)
    assert made.seq > lost.seq
    assert body(made).at_ms == 1_003_000


def test_counts_begin_anew_with_another_start_of_the_agent(agent: Agent, tmp_path: Path) -> None:
    agent.metrics.tally("digits", "1").count("requests", 10)
    [before] = agent.heartbeats.make()
    again = Agent(tmp_path / "another.db")
    again.metrics.tally("digits", "1").count("requests", 3)
    [after] = again.heartbeats.make()
    again.outbox.close()
    assert (body(before).requests, body(after).requests) == (10, 3)
    assert after.boot_epoch >= before.boot_epoch


def test_they_say_what_waits_in_the_outbox_and_when_it_is_through(agent: Agent) -> None:
    for seq, start in enumerate((120_000, 180_000)):
        window = wire.Window(start, start + 60_000, ())
        envelope = wire.Envelope("pod-1", 1, seq, "digits", "1", "d1", window)
        agent.outbox.append(envelope.key, lambda seq, envelope=envelope: wire.encode(envelope))  # type: ignore[misc]
    [made] = agent.heartbeats.make()
    assert body(made).waiting_since_ms == 120_000
    agent.heartbeats.delivered([made])
    assert agent.beat() == []
    agent.outbox.acknowledge([item.rowid for item in agent.outbox.pending(9)])
    agent.now = 2.0
    assert agent.beat() == [("1", "serving")], "at once, for detectors wait for it"
    assert agent.beat() == []


def test_a_farewell_while_a_window_waits_makes_no_storm(agent: Agent) -> None:
    envelope = wire.Envelope("pod-1", 1, 0, "digits", "1", "d1", wire.Window(120_000, 180_000, ()))
    agent.outbox.append(envelope.key, lambda seq: wire.encode(envelope))
    assert agent.beat() == [("1", "serving")]
    agent.serving = [V2]
    assert agent.beat() == [("1", "stopped"), ("2", "serving")]
    agent.outbox.acknowledge([item.rowid for item in agent.outbox.pending(9)])
    assert [agent.beat() for _ in range(3)] == [[], [], []]


@pytest.fixture
def published(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishers send the agent's heartbeats, too."""
    run = Publisher.run
    monkeypatch.setattr(Publisher, "run", lambda self, outbox, stop: run(self, outbox, stop, agent.heartbeats))


@pytest.mark.transport
@pytest.mark.usefixtures("published")
def test_they_reach_the_broker_and_the_farewell_is_the_last(agent: Agent, broker: Broker, topic: str) -> None:
    agent.heartbeats._oldest = lambda key: None
    agent.outbox.append("digits@1", lambda seq: b"%d" % seq)
    with Running(broker.bootstrap, topic, agent.outbox, api_version=broker.api_version) as running:
        eventually(lambda: agent.outbox.depth() == (0, 0) and not agent.heartbeats.due())
        agent.now = 31.0
        eventually(lambda: not agent.heartbeats.due())
        agent.heartbeats.leave()
    records = received(broker, topic, 4)
    assert records[1].value == b"1", "the first goes before all else"
    said = [wire.decode(record.value) for record in records if record.value != b"1"]
    assert [body(envelope).status for envelope in said] == ["serving", "serving", "stopped"]
    assert [envelope.seq for envelope in said] == [1, 2, 3]
    assert {record.key for record in records} == {b"digits@1"}
    assert running.count("published_total") == 1
    assert running.count("publish_errors_total") == 0


@pytest.mark.usefixtures("published")
def test_without_a_broker_none_piles_up(agent: Agent) -> None:
    with Running(f"127.0.0.1:{free_port()}", "t", agent.outbox, options={"bootstrap_timeout_ms": 100}) as running:
        eventually(lambda: running.count("publish_errors_total") >= 2)
        assert agent.heartbeats.due()
    assert agent.outbox.depth() == (0, 0)
    agent.now = 1000.0
    [made] = agent.heartbeats.make()
    assert body(made).at_ms == 2_000_000
