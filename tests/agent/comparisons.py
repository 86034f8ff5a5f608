"""Comparisons for tests: a builder with plain defaults, Hypothesis strategies, and equality over arrays."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from agent import wire

CHANNELS = 3
PROBES = tuple(
    wire.Probe(name, "Relu", f"t{i}", CHANNELS, 1, "activation", i + 1, True)
    for i, name in enumerate(("conv1_relu", "conv2_relu", "fc_relu"))
)


def probe_comparison(probe: wire.Probe = PROBES[0], **changed: Any) -> wire.ProbeComparison:
    """Of 4 requests, 20 dB."""
    item = wire.ProbeComparison(
        probe,
        n=4,
        elements=100,
        signal=100.0,
        power=101.0,
        noise=1.0,
        cross=100.0,
        max_abs_error=0.5,
        mismatched=1,
        nonfinite=0,
        only_served_active=np.array([0, 1, 2]),
        only_baseline_active=np.array([0, 0, 2]),
    )
    return replace(item, **changed)


def comparison(**changed: Any) -> wire.Comparison:
    """Of 4 requests with the reference model."""
    item = wire.Comparison(
        start_ms=60_000,
        end_ms=120_000,
        kind="reference_model",
        baseline="reference.onnx",
        baseline_digest="cd" * 32,
        provider="CPUExecutionProvider",
        n=4,
        top1_n=4,
        top1_agree=3,
        mismatched=1,
        probes=(probe_comparison(),),
    )
    return replace(item, **changed)


def holdout(**changed: Any) -> wire.Comparison:
    """100 labelled requests: 90 right when served, 93 by the reference model."""
    return comparison(
        kind="holdout",
        baseline="holdout.npz",
        n=100,
        top1_n=100,
        top1_agree=95,
        accuracy_n=100,
        served_correct=90,
        baseline_correct=93,
        baseline_n=100,
        only_served_correct=1,
        only_baseline_correct=4,
        **{"reference": "reference.onnx", **changed},
    )


def same(a: wire.Comparison, b: wire.Comparison) -> bool:
    """Equality, arrays included."""
    plain = [field.name for field in fields(a) if field.name != "probes"]
    return (
        all(getattr(a, name) == getattr(b, name) for name in plain)
        and len(a.probes) == len(b.probes)
        and all(_same_probe(x, y) for x, y in zip(a.probes, b.probes, strict=True))
    )


def _same_probe(a: wire.ProbeComparison, b: wire.ProbeComparison) -> bool:
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


@st.composite
def probe_comparisons(draw: st.DrawFn, probe: wire.Probe) -> wire.ProbeComparison:
    """Sums are whole numbers, so that addition is exact in any order."""
    n = draw(st.integers(0, 1000))
    whole = st.integers(0, 1 << 30).map(float)
    served = [draw(st.integers(0, n)) for _ in range(CHANNELS)]
    baseline = [draw(st.integers(0, n - active)) for active in served]
    return wire.ProbeComparison(
        probe,
        n,
        draw(st.integers(0, 1 << 40)),
        draw(whole),
        draw(whole),
        draw(whole),
        draw(whole) - float(1 << 29),
        draw(whole),
        draw(st.integers(0, n)),
        draw(st.integers(0, n)),
        np.array(served, np.int64),
        np.array(baseline, np.int64),
    )


@st.composite
def comparisons(draw: st.DrawFn) -> wire.Comparison:
    """Any comparison of one window and baseline, with some of `PROBES`."""
    n = draw(st.integers(0, 1000))
    top1_n, accuracy_n = draw(st.integers(0, n)), draw(st.integers(0, n))
    served_correct, baseline_n = draw(st.integers(0, accuracy_n)), draw(st.integers(0, accuracy_n))
    baseline_correct = draw(st.integers(0, baseline_n))
    only_served = draw(st.integers(0, min(served_correct, baseline_n)))
    return comparison(
        n=n,
        top1_n=top1_n,
        top1_agree=draw(st.integers(0, top1_n)),
        accuracy_n=accuracy_n,
        served_correct=served_correct,
        baseline_n=baseline_n,
        baseline_correct=baseline_correct,
        only_served_correct=only_served,
        only_baseline_correct=draw(st.integers(0, min(baseline_correct, baseline_n - only_served))),
        mismatched=draw(st.integers(0, n)),
        probes=tuple(draw(probe_comparisons(probe)) for probe in PROBES if draw(st.booleans())),
    )
