"""Sampling by hash: deterministic, nested, of the rate asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.rates.sampling import Sampler, id_at_head, identity


@given(st.binary(max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_lower_rate_keeps_a_subset(request_id: bytes, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert Sampler(low).keep(request_id) <= Sampler(high).keep(request_id)


def test_all_pods_choose_alike() -> None:
    """A release that chose otherwise would make a half-updated fleet sample two different sets."""
    sampler = Sampler(0.5)
    assert [i for i in range(12) if sampler.keep(b"%d" % i)] == [0, 1, 5, 9, 10]


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.5, 1.0])
def test_share_is_the_rate(rate: float) -> None:
    n = 20_000
    kept = sum(Sampler(rate).keep(b"request-%d" % i) for i in range(n))
    assert abs(kept - n * rate) <= 4 * math.sqrt(n * rate * (1 - rate))


def test_rate_can_be_changed() -> None:
    sampler = Sampler(0.0)
    assert not sampler.keep(b"a")
    sampler.rate = 1.0
    assert sampler.keep(b"a")


def test_what_was_seen_and_kept_is_counted() -> None:
    sampler = Sampler(0.5)
    kept = sum(sampler.keep(b"%d" % i) for i in range(12))
    assert (sampler.seen, sampler.kept) == (12, kept)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_rate_is_a_share(rate: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Sampler(rate)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"id":"42","inputs":[]}', "42"),
        (b' {\n "id" : "a\\"b\\u00e9" }', 'a"bé'),
        ('{"id":"é"}'.encode(), "é"),
        (b'{"inputs":[],"id":"42"}', None),
        (b'{"id":42}', None),
        (b'{"id":""}', None),
        (b'{"id":"open', None),
        (b'{"id":"\xff"}', None),
        (b'{"id":"' + b"x" * 2000 + b'"}', None),
        (b"", None),
        (b"\x00\x01", None),
    ],
)
def test_id_at_the_head(body: bytes, expected: str | None) -> None:
    assert id_at_head(body) == expected


def test_identity_prefers_the_header_then_the_json_then_the_body() -> None:
    assert identity("h", "j", b"body") == b"h"
    assert identity(None, "j", b"body") == b"j"
    assert identity("", None, b"body") == b"body"


def test_identity_of_a_large_body_is_small_and_sees_its_middle() -> None:
    body = bytearray(16 << 20)
    plain = identity(None, None, bytes(body))
    assert len(plain) < 8192
    body[5_000_000:5_010_000] = b"\x01" * 10_000
    assert identity(None, None, bytes(body)) != plain


def test_choosing_counts_nothing_and_chooses_as_keeping_does() -> None:
    sampler = Sampler(0.5)
    ids = [b"%d" % number for number in range(100)]
    chosen = [sampler.chooses(one) for one in ids]
    assert (sampler.seen, sampler.kept) == (0, 0)
    assert [sampler.keep(one) for one in ids] == chosen
    assert (sampler.seen, sampler.kept) == (100, sum(chosen))
