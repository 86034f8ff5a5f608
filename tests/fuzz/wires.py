"""What arrives over Kafka: envelopes, stored histograms, ingest with its dead letters, letters that are read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np

from agent import summary, wire
from agent.summary import Histogram, histogram
from agent.wire import Envelope, NotProbed, Window, WireError
from detector.domain.agents import Heard
from detector.domain.settings import AgentLimits
from detector.ingestion import dead_letters
from detector.ingestion.ingest import IngestHandler
from detector.ingestion.plausible import Implausible, check
from detector.ingestion.records import Record
from detector.ingestion.transport import Letter
from detector.metrics import DetectorMetrics
from detector.store import IngestResult
from tests.detector.builders import START, compared, comparing, deployment, difference, ms, window
from tests.detector.builders import summary as small_summary
from tests.detector.fakes import kin
from tests.fuzz.mutations import of_bytes, of_lines, of_protobuf
from tests.fuzz.runner import Target

NOW = START + timedelta(minutes=5)


def messages() -> list[bytes]:
    """One of each kind, and a few that are on the edge of what is allowed."""
    announced = deployment(3)
    assert isinstance(announced.body, wire.Deployment)
    listed = replace(announced.body, not_probed=(NotProbed("If_1", "If", "a body within a body"),))
    odd = summary.from_pooled(
        np.array([[-2.0, np.nan, 1e-300]]), np.array([[-1.0, 3.0, 1e300]]), np.array([[0.0, 0.5, 1.0]])
    )
    holdout = compared(
        kind="holdout", baseline="holdout.npz", accuracy_n=50, served_correct=40, baseline_n=50, baseline_correct=41
    )
    return [
        wire.encode(message)
        for message in (
            window(1, content=small_summary(channels=3)),
            window(2, layers=("a",), content=odd),
            window(4, layers=("a",), content=summary.empty(2)),
            replace(announced, body=listed),
            comparing(5, compared()),
            comparing(6, compared(probes=(difference(n=100, served=()), difference("fc", 2, sqnr_db=np.inf)))),
            comparing(7, holdout),
            replace(announced, body=wire.Kinship(ms(NOW), "0", "d0", tuple(kin(np.random.default_rng(0)).values()))),
            replace(announced, body=wire.Heartbeat(ms(NOW), "serving", 30_000, 60_000, 0.05, 9, 8, 7, 1, 1)),
        )
    ]


def targets() -> list[Target]:
    made = messages()
    stored = [wire.encode_histograms(small_summary(channels=3)), wire.encode_histograms(summary.empty(2))]
    letters = [_letter(made[0]), _letter(made[4]), _letter(b"")]
    mutations = (of_protobuf, of_protobuf, of_bytes)
    return [
        Target("wire", made, mutations, _decode, (WireError,)),
        Target("histograms", stored, mutations, _decode_histograms, (WireError,)),
        Target("ingest", made, mutations, _ingest, ()),
        Target("dead-letters", letters, (of_lines, of_bytes), _read_letter, ()),
    ]


def _decode(data: bytes) -> bool:
    """What is decoded and plausible can be merged, and goes over the wire again."""
    envelope = wire.decode(data)
    again = wire.decode(wire.encode(envelope))
    assert (again.agent_id, again.boot_epoch, again.seq, again.key) == (
        envelope.agent_id,
        envelope.boot_epoch,
        envelope.seq,
        envelope.key,
    )
    try:
        check(envelope, NOW)
    except Implausible:
        return True
    if isinstance(envelope.body, Window):
        for item in envelope.body.probes:
            both = summary.merge(item.summary, item.summary)
            assert both.n == 2 * item.summary.n
            for part in (both.mean_histogram, both.max_histogram):
                assert np.array_equal(part.totals(), both.finite)
                _sound(part)
    elif isinstance(envelope.body, wire.Comparison):
        twice = wire.merge(envelope.body, envelope.body)
        assert twice.n == 2 * envelope.body.n
        for probe in twice.probes:
            assert -1 <= wire.cosine(probe) <= 1
            assert not np.isnan(wire.sqnr_db(probe))
    return True


def _sound(part: Histogram) -> None:
    """The order and the limits that `Histogram` promises."""
    order = np.lexsort((part.sign * part.index, part.sign, part.channel))
    assert np.array_equal(order, np.arange(len(order)))
    names = np.stack([part.channel, part.sign, part.index], 1)
    assert len(np.unique(names, axis=0)) == len(names)
    assert (part.count > 0).all()
    assert (part.channel < part.channels).all()
    assert histogram.MIN_SCALE <= part.scale <= histogram.MAX_SCALE


def _decode_histograms(data: bytes) -> bool:
    for part in wire.decode_histograms(data):
        part.totals()
    return True


class _Store:
    """Takes everything."""

    def __init__(self) -> None:
        self.applied: list[Envelope] = []

    def next_offsets(self, topic: str) -> dict[int, int]:
        return {}

    def recognise(self, topic: str, topic_id: str) -> list[int]:
        return []

    def complete_to(self, topic: str) -> dict[int, datetime]:
        return {}

    def clock_errors(self) -> dict[str, float]:
        return {}

    def reach(self, topic: str, offsets: Mapping[int, int], at: datetime) -> None:
        return

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
        self.applied += envelopes
        return IngestResult(len(envelopes), 0)


class _Letters:
    def __init__(self) -> None:
        self.count = 0

    def publish(self, raw: bytes | None, headers: Sequence[tuple[str, bytes]], key: bytes | None = None) -> None:
        assert all(isinstance(value, bytes) for _, value in headers)
        self.count += 1


_METRICS = DetectorMetrics(lambda: NOW, 600.0)


def _ingest(data: bytes) -> bool:
    """Every message is applied or set aside, never both and never neither."""
    store, letters = _Store(), _Letters()
    handler = IngestHandler(store, "t", letters, _METRICS, lambda: NOW)
    handler.assigned([0])
    handler.handle(0, [Record(0, data[:4], data, (("agent", data[:9]),)), Record(1, None, None)])
    assert len(store.applied) + letters.count == 2
    return bool(store.applied)


def _letter(value: bytes) -> bytes:
    headers = (
        b"agent=pod-1", b"dead-letter-topic=reluscope.windows", b"dead-letter-partition=3", b"dead-letter-offset=17",
        b"dead-letter-reason=undecodable", b"dead-letter-error=not a reluscope message: no schema_version",
        b"dead-letter-at=2026-03-01T12:00:00+00:00", b"dead-letter-none",
    )  # fmt: skip
    return b"\n".join(headers) + b"\n\n" + value


def _read_letter(data: bytes) -> bool:
    """`reluscope dead-letters list` and `replay` on whatever is in that topic."""
    head, _, value = data.partition(b"\n\n")
    headers = []
    for line in head.split(b"\n"):
        name, mark, text = line.partition(b"=")
        headers.append((name.decode(errors="replace"), text if mark else None))
    letter = Letter(0, 1, None, value or None, tuple(headers))  # type: ignore[arg-type]
    row = dead_letters._row(letter)
    json.dumps(row).encode()
    "{at}  {topic}/{partition}@{offset}  {reason}: {error}".format(**row).encode()
    return dead_letters._still_wrong(letter) is None
