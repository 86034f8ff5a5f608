"""Charts over time: which slots, which lines, which band."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from agent.summary import Summary
from detector.domain.words import percent
from detector.report import plots
from detector.report.data import Report, active_share, dead_share, largest, mean
from detector.report.plots import Axis, Band
from detector.store import HistoryPoint


@dataclass(frozen=True, slots=True)
class Multiple:
    """One layer's row of small charts."""

    layer: str
    kind: str
    charts: tuple[Markup, ...]
    """Active share, mean, maximum, dead share."""


def axis_of(report: Report) -> Axis:
    """From the first window to the last, so that a young model's line fills its chart."""
    start = min((s.start for s in report.spans), default=report.since)
    end = max((s.end for s in report.spans), default=report.now)
    marks = [(report.version.deployed_at, "deployment")] if report.version.deployed_at else []
    marks += [(c.finished_at, "finding") for c in report.checks if c.findings][:1]
    marks += [(alert.starts_at, "alert") for alert in report.alerts]
    kept = ((time.timestamp(), kind) for time, kind in marks if start <= time <= end)
    return Axis(start.timestamp(), end.timestamp(), tuple(kept))


def thinned(spans: Sequence[tuple[float, float, int]], most: int = 240) -> list[tuple[float, float, int]]:
    """Neighbouring windows added up until there are at most ``most``."""
    size = -(-len(spans) // most)
    groups = (spans[i : i + size] for i in range(0, len(spans), size))
    return [(group[0][0], group[-1][1], sum(n for *_, n in group)) for group in groups]


def multiples(report: Report, axis: Axis) -> list[Multiple]:
    """Every layer's charts, in graph order."""
    now, then = _by_layer(report.history), _by_layer(report.reference_history)
    whole = report.reference.summaries if report.reference else {}
    starts = sorted({point.window_start.timestamp() for point in report.history})
    step = min((b - a for a, b in pairwise(starts)), default=60.0)
    slot = max((axis.end - axis.start) / plots.BUCKETS, step)
    rows = []
    for probe in report.probes:
        points, summary = now.get(probe.name, []), whole.get(probe.name)
        before = then.get(probe.name, [])
        charts = []
        for what, value, overall, join in _MEASURES:
            line = _line(points, value, join, slot)
            span = [number for point in before if (number := value(point)) is not None] if before else []
            charts.append(_chart(probe.name, what, line, axis, _band(span, overall(summary)), slot))
        dead = [
            (c.window_end.timestamp(), share)
            for c in report.checks
            if c.window_end is not None and (share := dead_share(c, probe.name)) is not None
        ]
        # Checks need not be as frequent as windows: only a gap in the windows should show as one.
        reach = max((b[0] - a[0] for a, b in pairwise(dead)), default=step)
        dead_line = _chart(probe.name, "dead share", _last(dead, slot), axis, None, max(reach, slot))
        charts.append(dead_line if probe.exact_zero else Markup('<span class="none">never exactly zero</span>'))
        rows.append(Multiple(probe.name, probe.kind, tuple(charts)))
    return rows


def _by_layer(history: Sequence[HistoryPoint]) -> dict[str, list[HistoryPoint]]:
    layers: dict[str, list[HistoryPoint]] = defaultdict(list)
    for point in sorted(history, key=lambda p: p.window_start):
        layers[point.layer].append(point)
    return layers


def _weighted(values: Sequence[tuple[float, int]]) -> float:
    return sum(value * n for value, n in values) / (sum(n for _, n in values) or 1)


def _highest(values: Sequence[tuple[float, int]]) -> float:
    return max(value for value, _ in values)


_Join = Callable[[Sequence[tuple[float, int]]], float]
_MEASURES: tuple[
    tuple[str, Callable[[HistoryPoint], float | None], Callable[[Summary | None], float | None], _Join], ...
] = (
    ("active share", lambda p: p.active_share, active_share, _weighted),
    ("mean", lambda p: p.mean, mean, _weighted),
    ("maximum", lambda p: p.max, largest, _highest),
)


def _line(
    points: Sequence[HistoryPoint], value: Callable[[HistoryPoint], float | None], join: _Join, slot: float
) -> list[tuple[float, float]]:
    """Windows joined into slots of time: shares and means weighted by requests, maxima by the highest."""
    slots: dict[int, list[tuple[float, float, int]]] = defaultdict(list)
    for point in points:
        if (number := value(point)) is not None:
            time = point.window_start.timestamp()
            slots[int(time // slot)].append((time, number, point.n))
    return [
        (sum(t for t, *_ in group) / len(group), join([(v, n) for _, v, n in group]))
        for _, group in sorted(slots.items())
    ]


def _last(points: Sequence[tuple[float, float]], slot: float) -> list[tuple[float, float]]:
    return list({int(time // slot): (time, value) for time, value in points}.values())


def _band(values: Sequence[float], overall: float | None) -> Band | None:
    if overall is None:
        return None
    return Band(min([*values, overall]), max([*values, overall]), overall)


def _chart(
    layer: str, what: str, line: Sequence[tuple[float, float]], axis: Axis, band: Band | None, step: float
) -> Markup:
    share = what.endswith("share")
    show = percent if share else plots.number
    label = f"{layer}, {what}: last {show(line[-1][1])}" if line else f"{layer}, {what}: no data"
    label += f", reference {show(band.low)} to {show(band.high)}" if band else ""
    return plots.spark(line, axis, band, label, step, share)
