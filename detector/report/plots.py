"""Small inline charts of the report.

Hand-written SVG rather than matplotlib: a chart is one or two kilobytes, takes its colours from the page's style sheet
(so dark mode and print work), carries its own text for screen readers, and the detector needs no plotting package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from agent.summary.histogram import Floats, Histogram, bucket_bounds
from detector.domain.words import NOTHING

BUCKETS = 96
"""Points a line may have: more would be under two pixels apart."""
BINS = 24
SPARK = (168.0, 46.0)
BARS = (960.0, 72.0)
SHAPE = (264.0, 104.0)
RATIO = (360.0, 16.0)
RATIO_TOP_DB = 60.0
"""Full length of a bar: at more, rounding to ten bits would be coarser than the difference."""
_TAIL = 0.005


@dataclass(frozen=True, slots=True)
class Axis:
    """The time shared by all charts of a page, Unix seconds, and what happened when."""

    start: float
    end: float
    marks: tuple[tuple[float, str], ...] = ()
    """(time, kind) with kind "deployment", "finding" or "alert"."""

    def x(self, time: float, width: float) -> float:
        """Horizontal place of ``time`` in a chart of that width."""
        return width * (time - self.start) / max(self.end - self.start, 1e-9)


@dataclass(frozen=True, slots=True)
class Band:
    """What the reference had: lowest and highest window, and the value over all of it."""

    low: float
    high: float
    middle: float


@dataclass(frozen=True, slots=True)
class Shape:
    """One channel's distribution over shared bins, as shares of its finite requests."""

    zero: float
    bins: Floats


def number(value: float | None) -> str:
    """Three significant digits, or a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.0e}" if abs(value) < 1e-3 else f"{value:.2e}".replace("e+", "e")


def decibels(value: float | None) -> str:
    """A ratio in dB; "∞" where nothing differs at all."""
    if value is None or math.isnan(value):
        return NOTHING
    return ("∞" if value > 0 else "-∞") if math.isinf(value) else f"{value:.1f} dB"


def _svg(size: tuple[float, float], style: str, label: str, body: Sequence[str], stretch: bool = False) -> Markup:
    fit = ' preserveAspectRatio="none"' if stretch else f' width="{size[0]:g}" height="{size[1]:g}"'
    # Bodies are numbers put into fixed text; the label, which holds names from outside, is escaped.
    return Markup(  # noqa: S704
        f'<svg class="{style}" role="img" aria-label="{escape(label)}" viewBox="0 0 {size[0]:g} {size[1]:g}"{fit}>'
        + "".join(body)
        + "</svg>"
    )


def _marks(axis: Axis, size: tuple[float, float]) -> list[str]:
    return [
        f'<path class="mark {kind}" d="M{axis.x(time, size[0]):.1f} 0V{size[1]:g}"/>'
        for time, kind in axis.marks
        if axis.start <= time <= axis.end
    ]


def spark(
    points: Sequence[tuple[float, float]], axis: Axis, band: Band | None, label: str, step: float, share: bool = False
) -> Markup:
    """A line of (time, value) over the reference's band.

    ``step`` is the usual distance of points in seconds: where they lie further apart than twice that, the line breaks.
    ``share`` keeps the scale within 0 to 1.
    """
    points = [(time, value) for time, value in points if math.isfinite(value)]
    if not points:
        return Markup('<span class="none">no data</span>')
    width, height = SPARK
    values = [value for _, value in points] + ([band.low, band.high, band.middle] if band else [])
    low, high = min(values), max(values)
    # A steady line should lie in the middle and look steady, not be blown up to full height.
    pad = max((high - low) * 0.08, abs(high) * 0.04, 0.02 if share else 1e-9)
    low, high = low - pad, high + pad
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    plot = width - 34

    def y(value: float) -> float:
        return (height - 2) * (high - value) / (high - low) + 1

    body: list[str] = []
    if band:
        tall = max(y(band.low) - y(band.high), 0.8)
        body.append(f'<rect class="band" x="0" y="{y(band.high):.1f}" width="{plot:g}" height="{tall:.1f}"/>')
        body.append(f'<path class="middle" d="M0 {y(band.middle):.1f}H{plot:g}"/>')
    body += _marks(axis, (plot, height))
    path, last = "", -math.inf
    for time, value in points:
        # A lone point needs a line of some length to be seen at all.
        path += f"M{axis.x(time, plot):.1f} {y(value):.1f}h.1" if time - last > 2 * step else ""
        path += f"L{axis.x(time, plot):.1f} {y(value):.1f}"
        last = time
    body.append(f'<path class="line" d="{path}"/>')
    body.append(f'<text x="{plot + 3:g}" y="9">{_tick(high, share)}</text>')
    body.append(f'<text x="{plot + 3:g}" y="{height - 2:g}">{_tick(low, share)}</text>')
    return _svg(SPARK, "spark", label, body)


def _tick(value: float, share: bool) -> str:
    if share:
        return f"{100 * value:.0f} %"
    if 100 <= abs(value) < 1e4:
        return f"{value:.0f}"
    return f"{value:.2g}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:.0e}"


def bars(spans: Sequence[tuple[float, float, int]], axis: Axis, label: str) -> Markup:
    """Requests of each (start, end, requests), drawn over the whole width."""
    width, height = BARS
    top = max((n for *_, n in spans), default=0) or 1
    body = []
    for start, end, n in spans:
        left, right = axis.x(start, width), axis.x(end, width)
        tall = (height - 2) * n / top
        body.append(
            f'<rect class="bar" x="{left:.1f}" y="{height - tall:.1f}" '
            f'width="{max(right - left - 1, 0.8):.1f}" height="{tall:.1f}"/>'
        )
    return _svg(BARS, "bars", label, body + _marks(axis, BARS), stretch=True)


def shapes(current: Histogram, reference: Histogram | None, channel: int) -> tuple[Shape, Shape | None, Floats]:
    """The channel's distributions over `BINS` common bins, and the bins' edges.

    Buckets spread evenly over the bins that they overlap; the outermost bins take in the tails beyond the 0.5 %
    quantiles, so that one wild request does not flatten the picture.
    """
    both = [_cumulated(h, channel) for h in (current, reference) if h is not None]
    quantiles = [np.interp([_TAIL * c[-1], (1 - _TAIL) * c[-1]], c, x) for x, c in both if len(x) and c[-1] > 0]
    low = min((q[0] for q in quantiles), default=0.0)
    high = max((q[1] for q in quantiles), default=1.0)
    if 0 < low < high / 4:
        low = 0.0
    if high <= low:
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    edges = np.linspace(low, high, BINS + 1)
    first = _shape(current, channel, edges)
    return first, None if reference is None else _shape(reference, channel, edges), edges


def _cumulated(histogram: Histogram, channel: int) -> tuple[Floats, Floats]:
    """Values and the number of non-zero requests up to each, in ascending order."""
    mine = histogram.channel == channel
    lower, upper = bucket_bounds(histogram.index[mine], histogram.scale)
    sign = histogram.sign[mine]
    left, right = np.where(sign > 0, lower, -upper), np.where(sign > 0, upper, -lower)
    total = np.cumsum(histogram.count[mine])
    before = total - histogram.count[mine]
    return np.column_stack([left, right]).ravel(), np.column_stack([before, total]).ravel().astype(np.float64)


def _shape(histogram: Histogram, channel: int, edges: Floats) -> Shape:
    values, cumulated = _cumulated(histogram, channel)
    zeros = float(histogram.zeros[channel])
    nonzero = float(cumulated[-1]) if len(cumulated) else 0.0
    if zeros + nonzero == 0:
        return Shape(0.0, np.zeros(len(edges) - 1))
    at = np.interp(edges, values, cumulated) if len(values) else np.zeros(len(edges))
    at[0], at[-1] = 0.0, nonzero
    return Shape(zeros / (zeros + nonzero), np.diff(at) / (zeros + nonzero))


def overlay(current: Shape, reference: Shape | None, edges: Floats, label: str) -> Markup:
    """Reference as filled bars, current as an outline over them; requests with exactly 0 stand apart on the left.

    That column's full height is 100 %; the bins have a scale of their own.
    """
    width, height = SHAPE
    floor = height - 16
    either = [current, *([reference] if reference else [])]
    zeros = any(shape.zero > 0 for shape in either)
    left = 34.0 if zeros else 1.0
    # The zeros' column runs from 0 to 100 %; sharing its scale, the bins of a sparse channel would be flat.
    top = max(float(shape.bins.max(initial=0.0)) for shape in either) or 1.0
    wide = (width - 1 - left) / (len(edges) - 1)

    def y(share: float, full: float = top) -> float:
        return 2 + (floor - 2) * (1 - share / full)

    body = []
    if reference:
        columns = [(4.0, 18.0, y(reference.zero, 1.0))]
        columns += [(left + i * wide, wide - 0.8, y(float(share))) for i, share in enumerate(reference.bins)]
        body += [
            f'<rect class="ref" x="{x:.1f}" y="{tip:.1f}" width="{w:.1f}" height="{floor - tip:.1f}"/>'
            for x, w, tip in columns
            if tip < floor
        ]
    path = f"M4 {floor:g}V{y(current.zero, 1.0):.1f}h18V{floor:g}" if zeros else ""
    path += f"M{left:g} {floor:g}"
    path += "".join(f"V{y(float(share)):.1f}h{wide:.2f}" for share in current.bins) + f"V{floor:g}"
    body.append(f'<path class="now" d="{path}"/><path class="axis" d="M0 {floor:g}H{width:g}"/>')
    if zeros:
        body.append(f'<text x="13" y="{height - 4:g}" text-anchor="middle">zero</text>')
    body.append(f'<text x="{left:g}" y="{height - 4:g}">{number(float(edges[0]))}</text>')
    body.append(f'<text x="{width:g}" y="{height - 4:g}" text-anchor="end">{number(float(edges[-1]))}</text>')
    return _svg(SHAPE, "shape", label, body)


def ratio(sqnr_db: float, layer: str) -> Markup:
    """A bar from 0 dB, with a line at every 10 dB; negative ratios have no bar."""
    width, height = RATIO
    long = width * min(max(sqnr_db, 0.0), RATIO_TOP_DB) / RATIO_TOP_DB
    lines = "".join(f"M{width * tick / RATIO_TOP_DB:.1f} 0V{height:g}" for tick in range(0, int(RATIO_TOP_DB), 10))
    body = [f'<path class="axis" d="{lines}"/>']
    if long:
        body.append(f'<rect class="bar" x="0" y="3" width="{long:.1f}" height="{height - 6:g}"/>')
    return _svg(RATIO, "ratio", f"{layer}: {decibels(sqnr_db)}", body)
