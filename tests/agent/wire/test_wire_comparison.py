"""Comparisons: they survive the wire, merge as a commutative semigroup does, and damage to them is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from agent import wire
from agent.wire import reluscope_pb2 as pb
from tests.agent.comparisons import PROBES, comparison, comparisons, holdout, probe_comparison, same


def sent(body: wire.Comparison) -> wire.Envelope:
    return wire.Envelope("pod-1", 3, 7, "digits", "1", "ab" * 32, body)


@given(comparisons())
def test_comparisons_survive_the_round_trip(body: wire.Comparison) -> None:
    got = wire.decode(wire.encode(sent(body)))
    assert got.key == "digits@1"
    assert isinstance(got.body, wire.Comparison)
    assert same(got.body, body)


@pytest.mark.parametrize("kind", ["reference_model", "cpu_provider", "served_response", "holdout"])
def test_every_kind_survives(kind: wire.BaselineKind) -> None:
    reference = "3" if kind == "holdout" else ""
    got = wire.decode(wire.encode(sent(comparison(kind=kind, reference=reference)))).body
    assert isinstance(got, wire.Comparison)
    assert (got.kind, got.reference) == (kind, reference)


@given(comparisons(), comparisons(), comparisons())
def test_merge_is_associative_and_commutative(a: wire.Comparison, b: wire.Comparison, c: wire.Comparison) -> None:
    assert same(wire.merge(a, b), wire.merge(b, a))
    assert same(wire.merge(wire.merge(a, b), c), wire.merge(a, wire.merge(b, c)))


@given(comparisons(), comparisons())
def test_what_was_merged_is_still_valid_on_the_wire(a: wire.Comparison, b: wire.Comparison) -> None:
    merged = wire.merge(a, b)
    got = wire.decode(wire.encode(sent(merged))).body
    assert isinstance(got, wire.Comparison)
    assert same(got, merged)


def test_parts_split_by_probe_add_up_to_the_whole() -> None:
    first, second = probe_comparison(PROBES[0]), probe_comparison(PROBES[2])
    whole = comparison(probes=(first, second))
    parts = (replace(whole, probes=(first,)), comparison(n=0, top1_n=0, top1_agree=0, mismatched=0, probes=(second,)))
    assert same(wire.merge(*parts), whole)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "cpu_provider"),
        ("baseline", "2"),
        ("baseline_digest", ""),
        ("provider", "CUDAExecutionProvider"),
        ("start_ms", 0),
        ("end_ms", 1 << 40),
    ],
)
def test_unlike_comparisons_do_not_merge(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"differ in {name}:"):
        wire.merge(comparison(), comparison(**{name: value}))


def test_unlike_probes_do_not_merge() -> None:
    renamed = probe_comparison(replace(PROBES[0], op="Elu"))
    with pytest.raises(ValueError, match="probe conv1_relu is not the same"):
        wire.merge(comparison(), comparison(probes=(renamed,)))
    none = np.zeros(0, np.int64)
    narrow = probe_comparison(only_served_active=none, only_baseline_active=none)
    with pytest.raises(ValueError, match="conv1_relu has 3 and 0 channels"):
        wire.merge(comparison(), comparison(probes=(narrow,)))


def test_sqnr_and_cosine() -> None:
    baseline, served = np.array([3.0, 4.0]), np.array([3.0, 5.0])
    item = probe_comparison(
        signal=float(baseline @ baseline),
        power=float(served @ served),
        noise=float((served - baseline) @ (served - baseline)),
        cross=float(served @ baseline),
    )
    assert wire.sqnr_db(item) == pytest.approx(10 * math.log10(25))
    assert wire.cosine(item) == pytest.approx(29 / math.sqrt(25 * 34))
    assert wire.sqnr_db(probe_comparison(noise=0.0)) == math.inf
    assert wire.sqnr_db(probe_comparison(signal=0.0)) == -math.inf
    assert wire.sqnr_db(probe_comparison(signal=1e300, noise=1e-300)) == pytest.approx(6000)
    assert wire.cosine(probe_comparison(signal=0.0, power=0.0)) == 1.0
    assert wire.cosine(probe_comparison(signal=0.0)) == 0.0
    assert wire.cosine(probe_comparison(signal=1e300, power=1e300, cross=1e300)) == 1.0


Damage = Callable[[pb.Comparison], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: setattr(m, "end_unix_ms", 0), "no span of time"),
        (lambda m: setattr(m, "kind", 9), "kind 9 is unknown"),
        (lambda m: setattr(m, "kind", 0), "kind 0 is unknown"),
        (lambda m: setattr(m, "baseline", ""), "baseline is empty"),
        (lambda m: setattr(m, "top1_n", 101), "top1_n 101 exceeds its n 100"),
        (lambda m: setattr(m, "top1_agree", 101), "top1_agree 101 exceeds its top1_n 100"),
        (lambda m: setattr(m, "served_correct", 101), "served_correct 101 exceeds its accuracy_n 100"),
        (lambda m: setattr(m, "baseline_n", 101), "baseline_n 101 exceeds its accuracy_n"),
        (lambda m: setattr(m, "baseline_correct", 101), "baseline_correct 101 exceeds its baseline_n"),
        (lambda m: setattr(m, "only_served_correct", 91), "only_served_correct 91 exceeds its served_correct 90"),
        (lambda m: setattr(m, "only_baseline_correct", 94), "only_baseline_correct 94 exceeds its baseline_correct"),
        (lambda m: m.MergeFrom(pb.Comparison(only_served_correct=90, only_baseline_correct=11)), "discordant"),
        (lambda m: setattr(m, "mismatched", 101), "mismatched 101 exceeds its n"),
        (lambda m: setattr(m, "n", 2**63), "63 bits"),
        (lambda m: m.probes.append(m.probes[0]), "two probes of one name"),
        (lambda m: setattr(m.probes[0], "n", 2**63), "63 bits"),
        (lambda m: setattr(m, "reference", ""), "baseline_n, but its reference is empty"),
        (lambda m: setattr(m, "kind", pb.REFERENCE_MODEL), "kind reference_model names a reference"),
        (lambda m: setattr(m.probes[0], "elements", 2**63), "63 bits"),
        (lambda m: setattr(m.probes[0], "mismatched", 5), "mismatched 5 exceeds its 4 requests"),
        (lambda m: setattr(m.probes[0], "nonfinite", 5), "nonfinite 5 exceeds its 4 requests"),
        (lambda m: setattr(m.probes[0], "noise", -1.0), "noise is negative"),
        (lambda m: setattr(m.probes[0], "max_abs_error", -1.0), "max_abs_error is negative"),
        (lambda m: m.probes[0].only_served_active.append(1), "4 and 3 channels"),
        (lambda m: setattr(m.probes[0].probe, "channels", 7), "counts for 3 of 7 channels"),
        (lambda m: m.probes[0].only_served_active.__setitem__(0, 5), "counts more requests"),
        (lambda m: m.probes[0].only_baseline_active.__setitem__(2, 3), "counts more requests"),
        (lambda m: m.probes[0].only_baseline_active.__setitem__(0, 2**63), "63 bits"),
    ],
)
def test_damage_is_named(damage: Damage, message: str) -> None:
    raw = pb.Envelope.FromString(wire.encode(sent(holdout())))
    damage(raw.comparison)
    with pytest.raises(wire.WireError, match=message):
        wire.decode(raw.SerializeToString())


def test_the_size_of_a_probe_is_hardly_underestimated() -> None:
    wide = wire.Probe("block/relu", "Relu", "t", 2048, 1, "activation", 7, True)
    counts = np.full(2048, 900)
    item = probe_comparison(wide, n=2000, only_served_active=counts, only_baseline_active=counts)
    size = len(wire.encode(sent(comparison(n=2000, probes=(item,)))))
    assert 0.5 * size < wire.estimated_comparison_size(item) < 2 * size
    assert wire.estimated_comparison_size(probe_comparison()) > len(
        wire.encode(sent(comparison(probes=(probe_comparison(),))))
    ) - len(wire.encode(sent(comparison(probes=()))))


@pytest.mark.parametrize("name", ["signal", "power", "noise", "cross", "max_abs_error"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_sum_that_is_not_finite_costs_its_probe_only(name: str, value: float) -> None:
    raw = pb.Envelope.FromString(wire.encode(sent(holdout())))
    whole = wire.decode(raw.SerializeToString()).body
    setattr(raw.comparison.probes[0], name, value)
    body = wire.decode(raw.SerializeToString()).body
    assert isinstance(body, wire.Comparison)
    assert isinstance(whole, wire.Comparison)
    first = body.probes[0]
    assert (first.elements, first.nonfinite, first.signal, first.cross, first.noise) == (0, first.n, 0, 0, 0)
    assert (body.n, body.top1_agree) == (whole.n, whole.top1_agree)
    assert [item.signal for item in body.probes[1:]] == [item.signal for item in whole.probes[1:]]
