"""Small messages for tests of ingest and store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from agent.summary import Summary, from_pooled
from agent.wire import Comparison, Deployment, Envelope, Probe, ProbeComparison, ProbeKind, ProbeWindow, Window

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def summary(n: int = 20, channels: int = 4, seed: int = 0) -> Summary:
    """Pooled values of a ReLU layer: half zeros, the first channel dead."""
    generator = np.random.default_rng(seed)
    maximum = np.maximum(generator.normal(size=(n, channels)), 0)
    maximum[:, 0] = 0
    return from_pooled(maximum * 0.25, maximum, (maximum > 0) * 0.5)


def probe(name: str = "conv1", position: int = 1, channels: int | None = 4) -> Probe:
    return Probe(name, "Relu", f"{name}_out", channels, 1, "activation", position, True)


def window(
    seq: int,
    start: datetime = START,
    *,
    agent: str = "agent-a",
    epoch: int = 1,
    model: str = "digits",
    version: str = "1",
    digest: str = "d1",
    layers: Sequence[str] = ("conv1", "fc1"),
    content: Summary | None = None,
    minutes: int = 1,
) -> Envelope:
    body = Window(
        ms(start),
        ms(start + minutes * MINUTE),
        tuple(
            ProbeWindow(probe(name, i + 1), content if content is not None else summary(seed=seq))
            for i, name in enumerate(layers)
        ),
    )
    return Envelope(agent, epoch, seq, model, version, digest, body)


def deployment(
    seq: int,
    at: datetime = START,
    *,
    agent: str = "agent-a",
    epoch: int = 1,
    model: str = "digits",
    version: str = "1",
    digest: str = "d1",
    probes: Sequence[Probe] = (probe("conv1", 1), probe("fc1", 2)),
) -> Envelope:
    body = Deployment(ms(at), tuple(probes), (), "CPUExecutionProvider")
    return Envelope(agent, epoch, seq, model, version, digest, body)


def difference(
    name: str = "conv1",
    position: int = 1,
    *,
    n: int = 100,
    sqnr_db: float = 30.0,
    mismatched: int = 0,
    served: Sequence[int] = (0, 0, 0, 0),
    baseline: Sequence[int] = (0, 0, 0, 0),
    kind: ProbeKind = "activation",
) -> ProbeComparison:
    """A layer that differs from the baseline by noise of a given strength."""
    signal = 1000.0 * n
    noise = 0.0 if sqnr_db == np.inf else signal / 10 ** (sqnr_db / 10)
    return ProbeComparison(
        Probe(name, "Relu", f"{name}_out", len(served) or None, 1, kind, position, kind == "activation"),
        n=n,
        elements=10 * n,
        signal=signal,
        power=signal + noise,
        noise=noise,
        cross=signal,
        max_abs_error=noise**0.5 / 10,
        mismatched=mismatched,
        nonfinite=0,
        only_served_active=np.array(served, np.int64),
        only_baseline_active=np.array(baseline, np.int64),
    )


def compared(start: datetime = START, minutes: int = 1, **fields: Any) -> Comparison:
    """A hundred requests on both sides, with the reference model unless told otherwise."""
    n = fields.get("n", 100)
    values: dict[str, Any] = {
        "kind": "reference_model", "baseline": "reference.onnx", "baseline_digest": "r1",
        "provider": "CUDAExecutionProvider", "n": n, "top1_n": n, "top1_agree": n, "probes": (difference(n=n),),
    }  # fmt: skip
    if fields.get("baseline_n"):
        values["reference"] = "reference.onnx"
    return Comparison(ms(start), ms(start + minutes * MINUTE), **values | fields)


def comparing(seq: int, body: Comparison, *, agent: str = "agent-a", version: str = "1") -> Envelope:
    """The message of a comparison."""
    return Envelope(agent, 1, seq, "digits", version, "d1", body)


def same(a: Summary, b: Summary) -> bool:
    """Equal but for the rounding of moments."""
    exact = ("active", "nonfinite", "lowest_mean", "highest_max")
    return (
        a.n == b.n
        and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in exact)
        and all(
            np.allclose(getattr(a, name), getattr(b, name), rtol=1e-12)
            for name in ("fraction_sum", "fraction_sq_sum", "mean", "m2")
        )
        and a.mean_histogram.same_as(b.mean_histogram)
        and a.max_histogram.same_as(b.max_histogram)
    )
