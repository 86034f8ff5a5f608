"""The handler: what is applied, what is set aside, what is tried again. With fakes for store and broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from structlog.testing import capture_logs

from agent.wire import Envelope, Heartbeat, Kinship, Window, encode
from detector.domain.agents import Heard
from detector.domain.settings import AgentLimits
from detector.domain.types import RefusedProbe
from detector.ingestion.cuts import Mark
from detector.ingestion.ingest import IngestHandler
from detector.ingestion.plausible import Implausible, check
from detector.ingestion.records import Headers, Record, RetryLater
from detector.metrics import DetectorMetrics
from detector.store import IngestResult, LostOwnership, StoreRefused, StoreUnavailable
from tests.detector.builders import START, compared, comparing, deployment, difference, ms, probe, summary, window
from tests.detector.fakes import kin

NOW = START + timedelta(minutes=5)


@dataclass
class FakeStore:
    """Keeps batches; refuses messages by sequence number; fails with what is queued."""

    offsets: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    failures: list[Exception] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)
    heard: list[tuple[Envelope, Heard]] = field(default_factory=list)
    complete: dict[int, datetime] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    topic_id: str = ""
    left_out: tuple[RefusedProbe, ...] = ()

    def next_offsets(self, topic: str) -> dict[int, int]:
        if self.failures:
            raise self.failures.pop(0)
        return dict(self.offsets)

    def recognise(self, topic: str, topic_id: str) -> list[int]:
        anew = list(self.offsets) if self.topic_id not in ("", topic_id) else []
        self.topic_id = topic_id
        self.offsets |= dict.fromkeys(anew, 0)
        return anew

    def complete_to(self, topic: str) -> dict[int, datetime]:
        return dict(self.complete)

    def clock_errors(self) -> dict[str, float]:
        return dict(self.errors)

    def reach(self, topic: str, offsets: Mapping[int, int], at: datetime) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.complete |= {partition: at for partition, offset in offsets.items() if self.offsets[partition] == offset}

    def ingest(
        self,
        topic: str,
        partition: int,
        expected_offset: int | None,
        next_offset: int,
        envelopes: Sequence[Envelope],
        heard: Sequence[Heard],
        limits: AgentLimits,
    ) -> IngestResult:
        if self.failures:
            raise self.failures.pop(0)
        if self.offsets.get(partition) != expected_offset:
            raise LostOwnership(str(partition))
        if any(envelope.seq in self.refused for envelope in envelopes):
            raise StoreRefused("too wide")
        self.offsets[partition] = next_offset
        self.applied += [envelope.seq for envelope in envelopes]
        self.heard += zip(envelopes, heard, strict=True)
        return IngestResult(len(envelopes), 0, self.left_out)


@dataclass
class FakeLetters:
    letters: list[tuple[bytes | None, dict[str, str], bytes | None]] = field(default_factory=list)
    failing: bool = False

    def publish(self, raw: bytes | None, headers: Headers, key: bytes | None = None) -> None:
        if self.failing:
            raise RetryLater("dead_letter", "no broker")
        self.letters.append((raw, {name: value.decode() for name, value in headers}, key))


@dataclass
class Line:
    store: FakeStore = field(default_factory=FakeStore)
    letters: FakeLetters = field(default_factory=FakeLetters)
    metrics: DetectorMetrics = field(default_factory=lambda: DetectorMetrics(lambda: NOW, 600))

    def __post_init__(self) -> None:
        self.handler = IngestHandler(self.store, "t", self.letters, self.metrics, lambda: NOW)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def line() -> Line:
    line = Line()
    line.handler.assigned([0, 1])
    return line


def records(*messages: Envelope | bytes | None, first: int = 0) -> list[Record]:
    values = [encode(message) if isinstance(message, Envelope) else message for message in messages]
    return [Record(first + i, b"key", value, (("agent", b"a"),)) for i, value in enumerate(values)]


def test_offsets_come_from_the_store() -> None:
    line = Line(FakeStore(offsets={1: 7, 2: 9}))
    assert line.handler.assigned([0, 1]) == {0: None, 1: 7}


def test_a_batch_is_applied_and_counted(line: Line) -> None:
    line.handler.handle(0, records(window(1), deployment(2)))
    line.handler.handle(0, records(window(3), first=5))
    assert line.store.applied == [1, 2, 3]
    assert line.store.offsets == {0: 6}
    assert line.count("reluscope_ingested_messages_total") == 3
    assert line.count("reluscope_last_ingest_timestamp_seconds") == NOW.timestamp()


def test_what_cannot_be_read_is_set_aside_with_its_provenance(line: Line) -> None:
    newer = b"\x08\x63" + encode(window(9))[2:]
    line.handler.handle(1, records(b"\xff\xfe", window(1), None, newer, first=40))
    assert line.store.applied == [1]
    assert line.store.offsets == {1: 44}
    raw, headers, key = line.letters.letters[0]
    assert (raw, key) == (b"\xff\xfe", b"key")
    assert headers["agent"] == "a"
    assert headers["dead-letter-topic"] == "t"
    assert headers["dead-letter-partition"] == "1"
    assert headers["dead-letter-offset"] == "40"
    assert headers["dead-letter-reason"] == "undecodable"
    assert headers["dead-letter-error"].startswith("not a reluscope message")
    assert [letter[0] for letter in line.letters.letters] == [b"\xff\xfe", None, newer]
    assert line.count("reluscope_dead_letter_messages_total", reason="undecodable") == 3


def beat(seq: int, ahead: timedelta) -> Envelope:
    body = Heartbeat(ms(NOW + ahead), "serving", 30_000, 60_000, 0.05)
    return Envelope("agent-a", 1, seq, "digits", "1", "d1", body)


def test_times_of_a_wrong_clock_are_put_right_once_a_heartbeat_told(line: Line) -> None:
    line.handler.handle(0, records(window(1, NOW - timedelta(minutes=31))))
    line.handler.reached({0: Mark(NOW - timedelta(seconds=2), 1)})
    with capture_logs() as logs:
        behind = timedelta(minutes=-30)
        line.handler.handle(0, records(beat(1, behind), window(2, NOW - timedelta(minutes=31)), first=1))
    starts = [e.body.start_ms for e, _ in line.store.heard if isinstance(e.body, Window)]
    assert starts == [ms(NOW - timedelta(minutes=31)), ms(NOW - timedelta(minutes=1))]
    assert [heard.at for _, heard in line.store.heard] == [NOW - timedelta(minutes=30), NOW, NOW]
    [said] = [entry for entry in logs if entry["event"] == "ingest.clock_error"]
    assert (said["agent_id"], said["seconds"]) == ("agent-a", -1798.0)


def test_a_clock_of_another_day_is_measured_before_its_messages_are_judged(line: Line) -> None:
    line.handler.reached({0: Mark(NOW - timedelta(seconds=2), 0)})
    ahead = timedelta(days=9)
    line.handler.handle(0, records(beat(1, ahead), deployment(2, NOW + ahead)))
    assert line.store.applied == [1, 2]
    assert line.letters.letters == []


def test_what_is_reached_is_stored_and_known_after_a_restart() -> None:
    line = Line(FakeStore(offsets={0: 5}, complete={0: NOW}, errors={"agent-a": 3600.0}))
    line.handler.assigned([0, 1])
    line.handler.reached({0: Mark(NOW + timedelta(seconds=9), 5), 1: Mark(NOW, 0)})
    assert line.store.complete == {0: NOW + timedelta(seconds=9)}, "of a partition without a message nothing is known"
    line.handler.handle(0, records(window(1, NOW + timedelta(minutes=59)), first=5))
    [(envelope, _)] = line.store.heard
    assert isinstance(envelope.body, Window)
    assert envelope.body.start_ms == ms(NOW - timedelta(minutes=1))
    line.store.failures = [StoreUnavailable("gone")]
    with pytest.raises(RetryLater, match="gone"):
        line.handler.reached({0: Mark(NOW, 6)})


def test_a_replayed_letter_loses_its_old_provenance(line: Line) -> None:
    record = Record(3, None, b"\xff", (("dead-letter-offset", b"1"), ("dead-letter-topic", b"x")))
    line.handler.handle(0, [record])
    assert line.letters.letters[0][1]["dead-letter-offset"] == "3"


def test_a_refused_message_does_not_take_its_batch_along(line: Line) -> None:
    line.store.refused = {2}
    line.handler.handle(0, records(window(1), b"", window(2), window(3), first=10))
    assert line.store.applied == [1, 3]
    assert line.store.offsets == {0: 14}
    assert [letter[1]["dead-letter-reason"] for letter in line.letters.letters] == ["undecodable", "refused"]
    assert line.letters.letters[1][1]["dead-letter-error"] == "too wide"


def test_a_layer_that_was_left_out_is_counted_and_said_once(line: Line) -> None:
    line.store.left_out = (RefusedProbe("digits", "1", "conv1", 7, 4),)
    with capture_logs() as logs:
        line.handler.handle(0, records(window(1)))
        line.handler.handle(0, records(window(2), first=1))
    (said,) = [entry for entry in logs if entry["event"] == "ingest.probe_refused"]
    assert (said["model"], said["layer"], said["channels"], said["known"]) == ("digits", "conv1", 7, 4)
    assert line.count("reluscope_refused_probes_total", reason="width") == 2
    assert line.letters.letters == []


@pytest.mark.parametrize(
    ("failure", "reason"), [(StoreUnavailable("gone"), "postgres"), (LostOwnership("other"), "lost_ownership")]
)
def test_infrastructure_is_tried_again_and_letters_are_written_once(
    line: Line, failure: Exception, reason: str
) -> None:
    line.store.failures = [failure]
    batch = records(b"junk", window(1))
    with pytest.raises(RetryLater) as caught:
        line.handler.handle(0, batch)
    assert caught.value.reason == reason
    assert line.store.offsets == {}
    line.handler.assigned([0])
    line.handler.handle(0, batch)
    assert line.store.applied == [1]
    assert len(line.letters.letters) == 1


def test_the_offset_waits_for_the_dead_letter(line: Line) -> None:
    line.letters.failing = True
    with pytest.raises(RetryLater, match="no broker"):
        line.handler.handle(0, records(window(1), b"junk"))
    assert line.store.offsets == {}
    assert line.count("reluscope_dead_letter_messages_total", reason="undecodable") == 0


def test_an_unreachable_store_at_assignment_is_tried_again(line: Line) -> None:
    line.store.failures = [StoreUnavailable("gone")]
    with pytest.raises(RetryLater, match="gone"):
        line.handler.assigned([0])


def broken(**changes: object) -> Envelope:
    return replace(window(1), **changes)  # type: ignore[arg-type]


def with_summary(**changes: object) -> Envelope:
    return window(1, layers=("conv1",), content=replace(summary(), **changes))  # type: ignore[arg-type]


def with_difference(**changes: object) -> Envelope:
    return comparing(1, compared(probes=(replace(difference(), **changes),)))  # type: ignore[arg-type]


def with_kinship(**changes: object) -> Envelope:
    (one,) = kin(np.random.default_rng(0)).values()
    return broken(body=Kinship(ms(START), "1", "d", (replace(one, **changes),)))  # type: ignore[arg-type]


def spanning(start_ms: int, end_ms: int) -> Envelope:
    return broken(body=Window(start_ms, end_ms, ()))


@pytest.mark.parametrize(
    ("envelope", "text"),
    [
        (broken(model="a\0b"), "model holds a NUL"),
        (broken(version="v" * 1001), "version has 1001 characters"),
        (broken(seq=1 << 63), "63 bits"),
        (window(1, START + timedelta(hours=2)), "future"),
        (spanning(1, 2), "before the year 2000"),
        (spanning(ms(START) - 90_000_000, ms(START)), "spans 25 hours"),
        (window(1, layers=("a", "a")), "probe a occurs twice"),
        (window(1, layers=("a\0",)), "name holds a NUL"),
        (deployment(1, START + timedelta(days=1)), "the deployment lies"),
        (deployment(1, probes=[probe("a", 1 << 31)]), "31 bits"),
        (with_summary(n=1 << 41), "requests in one window"),
        (with_summary(m2=np.full(4, -1.0)), "m2 is negative"),
        (with_summary(fraction_sum=np.full(4, 21.0)), "fraction_sum is outside"),
        (with_summary(nonfinite=np.full(4, 15)), "fraction_sum|active"),
        (comparing(1, compared(START + timedelta(days=1))), "the comparison's start lies"),
        (comparing(1, compared(START - timedelta(days=2), minutes=1500)), "the comparison spans 25 hours"),
        (comparing(1, compared(baseline="b\0")), "baseline holds a NUL"),
        (comparing(1, compared(n=1 << 41, probes=())), "requests in one comparison"),
        (comparing(1, compared(accuracy_n=3)), "kind reference_model has labels"),
        (with_difference(signal=1e201), "a sum of squares exceeds"),
        (with_difference(elements=0), "sums without elements"),
        (with_difference(cross=-2e5), "the product of both sides is larger"),
        (with_difference(noise=5e5), "the difference is larger"),
        (broken(body=Kinship(ms(START + timedelta(days=1)), "1", "d", ())), "the kinship lies"),
        (broken(body=Kinship(ms(START), "1\0", "d", ())), "former_version holds a NUL"),
        (with_kinship(n=1 << 41), "requests in one kinship"),
        (with_kinship(served_sq=np.full(8, 1e201)), "a sum of squares exceeds"),
        (with_kinship(product=np.full(8, 1e4)), "the product of both sides is larger"),
        (with_kinship(neighbour_product=np.full(8, -1e4)), "the product with the neighbours is larger"),
        (with_kinship(former=np.full(8, 1e4)), "a sum is larger than its squares allow"),
        (broken(body=Heartbeat(ms(START), "serving", 1, 1, 0.05, waiting_since_ms=1 << 62)), "after the year 9999"),
    ],
)
def test_what_cannot_be_true_is_named(envelope: Envelope, text: str) -> None:
    with pytest.raises(Implausible, match=text):
        check(envelope, NOW)


def test_what_is_true_passes() -> None:
    opposite = replace(difference(), cross=-1e5, power=1e5, noise=4e5)
    silent = replace(difference(), elements=0, signal=0.0, power=0.0, noise=0.0, cross=0.0)
    both = comparing(4, compared(probes=(opposite, replace(silent, probe=probe("fc1")))))
    labelled = comparing(5, compared(kind="holdout", accuracy_n=100))
    late = window(1, START + timedelta(minutes=30))
    for envelope in (window(1), deployment(2), late, both, labelled, with_kinship()):
        check(envelope, NOW)


def test_the_implausible_is_set_aside(line: Line) -> None:
    line.handler.handle(0, records(window(1, START + timedelta(days=1)), window(2)))
    assert line.store.applied == [2]
    assert line.letters.letters[0][1]["dead-letter-reason"] == "implausible"


def test_what_nobody_foresaw_costs_its_message_only(line: Line) -> None:
    """As the store would raise for a time that no calendar has."""
    odd = [ValueError("year 146140482 is out of range"), ValueError("year 146140482 is out of range")]
    line.store.failures = [odd[0], odd[1]]  # of the batch, then of its first message
    line.handler.handle(0, records(window(1), window(2), window(3)))
    assert line.store.applied == [2, 3]
    [(raw, headers, _)] = line.letters.letters
    assert raw == encode(window(1))
    assert headers["dead-letter-error"] == "ValueError in applying it", "a text may quote values"


def test_a_topic_made_anew_is_read_from_its_beginning() -> None:
    line = Line(FakeStore(offsets={0: 7}, topic_id="former"))
    assert line.handler.assigned([0, 1], "former") == {0: 7, 1: None}
    with capture_logs() as logs:
        assert line.handler.assigned([0, 1], "new") == {0: 0, 1: None}
    assert [(entry["event"], entry["partitions"]) for entry in logs] == [("ingest.topic_made_anew", [0])]
    assert line.handler.assigned([0], None) == {0: 0}, "a broker that does not tell changes nothing"
