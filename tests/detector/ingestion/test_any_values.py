"""Whatever values a model makes, the line takes them: no message is refused, no channel spoils another."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from agent import summary, wire
from agent.paired.sums import compare
from agent.summary import LARGEST, Summary
from detector.ingestion.plausible import check
from detector.statistics.drift import drift
from detector.statistics.explosion import explosion
from detector.statistics.fleet import of_summary
from detector.store.rows import summary_from_row, summary_to_row

NOW = datetime(2026, 3, 1, tzinfo=UTC)
START = int(NOW.timestamp() * 1000)
PROBE = wire.Probe("x", "Input", "x", 3, 1, "input", 0, False)
DBL_MAX = float(np.finfo(np.float64).max)
VALUES = st.one_of(
    st.floats(width=64),
    st.sampled_from([0.0, -0.0, 1.0, DBL_MAX, -DBL_MAX, 5e-324, -5e-324, 1e-310, 1.5e-162, 3e-162, LARGEST, -LARGEST]),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e154, 1e155, -1e300, 1e81, 1e-154, 2.2250738585072014e-308]),
)
Values = NDArray[np.float64]


def arrays(rows: int = 6) -> st.SearchStrategy[Values]:
    return st.integers(1, rows).flatmap(lambda count: npst.arrays(np.float64, (count, 2), elements=VALUES))


def summarised(values: Values, fraction: Values | None = None) -> Summary:
    """The two channels, and a plain third one."""
    plain = np.arange(1, len(values) + 1, dtype=np.float64)[:, np.newaxis]
    means = np.hstack([values, plain])
    shares = (means > 0).astype(np.float64) if fraction is None else np.hstack([fraction, np.ones_like(plain)])
    return summary.from_pooled(means, means[::-1], shares)


def travelled(sent: Summary) -> Summary:
    """What the detector has of it: decoded, found plausible, stored and read."""
    body = wire.Window(START, START + 1000, (wire.ProbeWindow(PROBE, sent),))
    envelope = wire.decode(wire.encode(wire.Envelope("a", 1, 1, "m", "1", "d", body)))
    check(envelope, NOW)
    assert isinstance(envelope.body, wire.Window)
    got = envelope.body.probes[0].summary
    assert summary.usable(sent) is sent, "an agent sends nothing that has to be mended"
    return summary_from_row(summary_to_row(got))  # type: ignore[arg-type]


@given(st.lists(st.tuples(arrays(), st.none() | st.just(True)), min_size=1, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("error")
def test_any_pooled_values_pass_the_whole_line(parts: list[tuple[Values, bool | None]], data: st.DataObject) -> None:
    sent = []
    for values, own in parts:
        fraction = data.draw(npst.arrays(np.float64, values.shape, elements=VALUES)) if own else None
        sent.append(summarised(values, fraction))
    merged = travelled(reduce(summary.merge, [travelled(one) for one in sent]))
    rows = sum(len(values) for values, _ in parts)
    assert merged.n == rows
    for name in ("mean", "m2", "fraction_sum", "fraction_sq_sum"):
        assert np.isfinite(getattr(merged, name)).all()
    assert (merged.mean_histogram.totals() == merged.finite).all()
    plain = np.concatenate([np.arange(1, len(values) + 1) for values, _ in parts])
    if all(own is None for _, own in parts):
        lost = [(len(v) - np.isfinite(np.where(np.abs(v) <= LARGEST, v, np.nan)).sum(axis=0)).max() for v, _ in parts]
        assert merged.nonfinite[:2].max() <= 2 * sum(lost)
    assert merged.nonfinite[2] == 0
    assert merged.mean[2] == pytest.approx(plain.mean())
    assert merged.m2[2] == pytest.approx(((plain - plain.mean()) ** 2).sum())


@given(arrays(), arrays())
@settings(max_examples=100, deadline=None)
def test_no_test_of_any_values_gives_a_nan(before: Values, after: Values) -> None:
    reference, current = travelled(summarised(before)), travelled(summarised(after))
    found = drift(reference, current)
    assert not np.isnan(found.p_value).any()
    assert not np.isnan(explosion(reference, current).p_value).any()
    scalars = of_summary(current)
    assert math.isfinite(scalars.mean)


def test_merging_what_the_largest_messages_hold_stays_finite() -> None:
    values = np.array([[LARGEST, -LARGEST]] * 2 + [[-LARGEST, LARGEST]] * 2)
    one = summarised(values)
    for _ in range(38):
        one = summary.merge(one, one)
    got = travelled(one)
    assert got.n == 4 << 38
    assert np.isfinite(got.m2).all()
    assert got.m2[0] == pytest.approx(got.n * LARGEST**2)
    assert got.m2[2] == pytest.approx(got.n * 1.25)
    assert got.mean[2] == pytest.approx(2.5)


def test_a_value_above_the_largest_is_its_requests_and_no_others() -> None:
    got = travelled(summarised(np.array([[1e81, 2.0], [1.0, 4.0]])))
    assert got.nonfinite.tolist() == [2, 0, 0], "once for its mean, once for its maximum: two requests"
    assert (got.mean[1], got.m2[1]) == (3, 2)


@given(arrays(4), arrays(4))
@settings(max_examples=200, deadline=None)
def test_any_two_sides_are_compared(served: Values, baseline: Values) -> None:
    rows = min(len(served), len(baseline))
    compared = compare(replace(PROBE, channels=2), served[:rows], baseline[:rows], None).sums
    body = wire.Comparison(START, START + 1, "cpu_provider", "CPU", "", "p", rows, probes=(compared,))
    merged = reduce(wire.merge, [body] * 5)
    for one in (body, merged):
        envelope = wire.decode(wire.encode(wire.Envelope("a", 1, 1, "m", "1", "d", one)))
        check(envelope, NOW)
        assert isinstance(envelope.body, wire.Comparison)
        item = envelope.body.probes[0]
        assert item.elements == one.probes[0].elements, "nothing had to be mended"
        assert not math.isnan(wire.sqnr_db(item))
        assert -1 <= wire.cosine(item) <= 1
