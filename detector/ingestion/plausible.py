"""What decodes but cannot be true, found before it reaches Postgres."""

from __future__ import annotations

import math
from datetime import datetime

import numpy as np

from agent.summary import Summary
from agent.wire import (
    Comparison,
    Deployment,
    Envelope,
    Heartbeat,
    Kinship,
    LayerKinship,
    Probe,
    ProbeComparison,
    Window,
)

MAX_AHEAD_MS = 3_600_000
"""How far an agent's clock may be ahead."""
EARLIEST_MS = 946_684_800_000
"""The year 2000: an agent whose clock says less has none."""
LATEST_MS = 253_402_300_799_999
"""The end of the year 9999, after which there is no time in Postgres or here."""
MAX_WINDOW_MS = 86_400_000
MAX_REQUESTS = 1 << 40
MAX_ELEMENTS = 1 << 56
"""A hundred of them still add up in 63 bits."""
MAX_TEXT = 1000
MAX_INTEGER = (1 << 31) - 1
MAX_BIGINT = (1 << 63) - 1
MAX_SUM = 1e200
"""Of squares: ten to the hundred of them still add up in a double."""
_ROUNDING = 1.01
"""How far sums of single-precision products may miss an inequality that holds for them exactly."""


class Implausible(ValueError):
    """The message contradicts itself or the clock; the text says where."""


def check(envelope: Envelope, now: datetime) -> None:
    """Raises Implausible unless Postgres can hold the message and a merge with it makes sense."""
    _text("agent_id", envelope.agent_id)
    _text("model", envelope.model)
    _text("version", envelope.version)
    _text("digest", envelope.digest)
    if max(envelope.boot_epoch, envelope.seq) > MAX_BIGINT:
        raise Implausible("boot_epoch or seq exceeds 63 bits")
    latest = int(now.timestamp() * 1000) + MAX_AHEAD_MS
    if isinstance(envelope.body, Deployment):
        _time("the deployment", envelope.body.at_ms, latest)
        _text("provider", envelope.body.provider)
        _probes(list(envelope.body.probes))
    elif isinstance(envelope.body, Heartbeat):
        # By its time an agent's clock is measured, so that may be any; since when something waits is stored.
        if (envelope.body.waiting_since_ms or 0) > LATEST_MS:
            raise Implausible("the heartbeat says that windows wait since after the year 9999")
    elif isinstance(envelope.body, Comparison):
        _comparison(envelope.body, latest)
    elif isinstance(envelope.body, Kinship):
        _kinship(envelope.body, latest)
    else:
        _window(envelope.body, latest)


def _comparison(comparison: Comparison, latest: int) -> None:
    _span("comparison", comparison.start_ms, comparison.end_ms, latest)
    for name in ("baseline", "baseline_digest", "reference", "provider"):
        _text(f"the comparison's {name}", getattr(comparison, name))
    if comparison.n > MAX_REQUESTS:
        raise Implausible(f"{comparison.n} requests in one comparison")
    if comparison.accuracy_n and comparison.kind != "holdout":
        raise Implausible(f"a comparison of kind {comparison.kind} has labels")
    _probes([item.probe for item in comparison.probes])
    for item in comparison.probes:
        if (wrong := _sums(item)) is not None:
            raise Implausible(f"probe {item.probe.name}: {wrong}")


def _sums(item: ProbeComparison) -> str | None:
    if item.n > MAX_REQUESTS:
        return f"{item.n} requests in one comparison"
    if item.elements > MAX_ELEMENTS:
        return f"{item.elements} elements in one comparison"
    if max(item.signal, item.power, item.noise, abs(item.cross)) > MAX_SUM:
        return f"a sum of squares exceeds {MAX_SUM:g}"
    if not item.elements and any((item.signal, item.power, item.noise, item.cross)):
        return "sums without elements"
    served, baseline = math.sqrt(item.power), math.sqrt(item.signal)
    if abs(item.cross) > _ROUNDING * served * baseline:
        return "the product of both sides is larger than their powers allow"
    if math.sqrt(item.noise) > _ROUNDING * (served + baseline):
        return "the difference is larger than both sides together"
    return None


def _kinship(body: Kinship, latest: int) -> None:
    _time("the kinship", body.at_ms, latest)
    _text("the kinship's former_version", body.former_version)
    _text("the kinship's former_digest", body.former_digest)
    for one in body.layers:
        _text("a layer's name", one.name)
        if (wrong := _layer_kinship(one)) is not None:
            raise Implausible(f"layer {one.name}: {wrong}")


def _layer_kinship(one: LayerKinship) -> str | None:
    if one.n + one.broken > MAX_REQUESTS:
        return f"{one.n + one.broken} requests in one kinship"
    if max(one.served_sq.max(initial=0), one.former_sq.max(initial=0)) > MAX_SUM:
        return f"a sum of squares exceeds {MAX_SUM:g}"
    # Cauchy and Schwarz; square roots are taken first, as the product of two sums may leave the range of a double.
    served, former = np.sqrt(one.served_sq), np.sqrt(one.former_sq)
    if (np.abs(one.product) > _ROUNDING * served * former).any():
        return "the product of both sides is larger than their squares allow"
    if (np.abs(one.neighbour_product) > _ROUNDING * served * np.roll(former, -1)).any():
        return "the product with the neighbours is larger than their squares allow"
    root = math.sqrt(one.n)
    if (np.abs(one.served) > _ROUNDING * root * served).any() or (np.abs(one.former) > _ROUNDING * root * former).any():
        return "a sum is larger than its squares allow"
    return None


def _span(what: str, start_ms: int, end_ms: int, latest: int) -> None:
    _time(f"the {what}'s start", start_ms, latest)
    _time(f"the {what}'s end", end_ms, latest)
    if end_ms - start_ms > MAX_WINDOW_MS:
        raise Implausible(f"the {what} spans {(end_ms - start_ms) / 3.6e6:.0f} hours")


def _window(window: Window, latest: int) -> None:
    _span("window", window.start_ms, window.end_ms, latest)
    _probes([item.probe for item in window.probes])
    for item in window.probes:
        if (wrong := _summary(item.summary)) is not None:
            raise Implausible(f"probe {item.probe.name}: {wrong}")


def _summary(summary: Summary) -> str | None:
    if summary.n > MAX_REQUESTS:
        return f"{summary.n} requests in one window"
    finite = summary.finite
    bound = finite * (1 + 1e-6)
    if (summary.m2 < 0).any():
        return "m2 is negative"
    for name in ("fraction_sum", "fraction_sq_sum"):
        values = getattr(summary, name)
        if ((values < 0) | (values > bound)).any():
            return f"{name} is outside 0 to the number of requests"
    if (summary.active > finite).any():
        return "more active than finite requests"
    return None


def _probes(probes: list[Probe]) -> None:
    seen: set[str] = set()
    for probe in probes:
        for name in ("name", "op", "tensor"):
            _text(f"a probe's {name}", getattr(probe, name))
        if probe.name in seen:
            raise Implausible(f"probe {probe.name} occurs twice")
        seen.add(probe.name)
        if max(probe.position, probe.channels or 0) > MAX_INTEGER:
            raise Implausible(f"probe {probe.name}: position or channels exceeds 31 bits")


def _text(name: str, value: str) -> None:
    if "\0" in value:
        raise Implausible(f"{name} holds a NUL character")
    if len(value) > MAX_TEXT:
        raise Implausible(f"{name} has {len(value)} characters, more than {MAX_TEXT}")


def _time(name: str, at_ms: int, latest: int) -> None:
    if at_ms < EARLIEST_MS:
        raise Implausible(f"{name} lies before the year 2000")
    if at_ms > latest:
        raise Implausible(f"{name} lies {(at_ms - latest + MAX_AHEAD_MS) / 1000:.0f} s in the future")
