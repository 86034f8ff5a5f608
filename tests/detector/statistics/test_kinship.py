"""Near and far: by namesakes against neighbours, whatever the traffic has them have in common."""

from __future__ import annotations

import numpy as np
import pytest

from agent.paired.kinship_sums import layer_sums
from agent.wire import LayerKinship, merge_layers
from detector.statistics.kinship import KINSHIP_REQUESTS, Likeness, likeness

Rng = np.random.Generator


def layers(rng: Rng, weight: float, *, n: int = 100, common: float = 0.0, count: int = 4) -> list[LayerKinship]:
    """Layers of 16 channels in which ``weight`` of a channel's own signal is its namesake's, plus a ``common`` one."""
    found = []
    for number in range(count):
        own, fresh = rng.normal(size=(2, n, 16))
        mood = common * rng.normal(size=(n, 1))
        one = layer_sums(f"relu{number}", mood + weight * own + (1 - weight**2) ** 0.5 * fresh, mood + own)
        assert one is not None
        found.append(one)
    return found


def test_the_correlation_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    a, b = np.cumsum(rng.normal(size=(2, 80, 3)), axis=1) + 50
    one = layer_sums("relu", a, b)
    assert one is not None
    expected = [np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(3)]
    neighbours = [np.corrcoef(a[:, c], b[:, (c + 1) % 3])[0, 1] for c in range(3)]
    found = likeness([one])
    assert (found.r, found.s) == pytest.approx((np.median(expected), np.median(neighbours)))
    # Fisher's interval by hand: tanh(atanh(r) - z / sqrt(n - 3)).
    assert found.low == pytest.approx(np.tanh(np.arctanh(found.r) - 2.326 / 77**0.5))


@pytest.mark.parametrize("common", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(("weight", "verdict"), [(1.0, "near"), (0.99, "near"), (0.0, "far")])
def test_what_all_channels_share_makes_no_version_near(weight: float, verdict: str, common: float) -> None:
    found = [likeness(layers(np.random.default_rng(seed), weight, common=common)) for seed in range(40)]
    assert {one.verdict for one in found} == {verdict}
    if common == 3.0:
        assert min(one.r for one in found) > 0.8  # of the far ones too


def test_too_few_requests_are_unknown_and_chunks_of_all_agents_add_up() -> None:
    chunks = [layers(np.random.default_rng(seed), 1.0, n=20, count=1)[0] for seed in range(3)]
    assert likeness(chunks[:1]) == likeness([chunks[0]])
    some = likeness([merge_layers(*chunks[:2])])
    assert (some.verdict, str(some)) == ("unknown", f"unknown: 40 of {KINSHIP_REQUESTS} requests compared")
    assert likeness([merge_layers(merge_layers(*chunks[:2]), chunks[2])]).verdict == "near"
    assert likeness([]).verdict == "unknown"


def test_a_fault_that_changes_most_layers_leaves_a_version_near() -> None:
    rng = np.random.default_rng(3)
    assert likeness([*layers(rng, 1.0, count=2), *layers(rng, 0.3, count=5)]).verdict == "near"
    assert likeness([*layers(rng, 1.0, count=1), *layers(rng, 0.3, count=6)]).verdict == "far"


def test_channels_that_vary_no_longer_are_left_out_until_they_are_most() -> None:
    rng = np.random.default_rng(4)
    former = rng.normal(size=(100, 16)) + 5
    for dead in (0, 8, 12, 16):
        served = former.copy()
        served[:, :dead] = 0.25
        one = layer_sums("relu", served, former)
        assert one is not None
        found = likeness([one])
        assert found.verdict == "near"
        assert found.broken == dead / 16
    assert str(found) == "near: 100% of the channels that varied do so no longer, on 100 requests"
    exploded = layer_sums("relu", np.full((100, 16), np.nan), former)
    assert exploded is not None
    assert likeness([exploded]).verdict == "near"
    # Traffic of one request over and over says nothing.
    constant = np.ones((100, 16))
    still = layer_sums("relu", constant, constant)
    assert still is not None
    assert likeness([still]).verdict == "unknown"


def test_the_sentence_has_the_numbers() -> None:
    assert str(Likeness("far", 80, 0.2, -0.05, 0.25, 0.5)) == (
        "far: channels correlate by 0.20 (-0.05 or more), with others by 0.25 (0.50 or less), on 80 requests"
    )
