"""Line charts for the documentation, as small hand-written SVG that follows the reader's light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 210.0, 34.0, 46.0
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
STYLE = (
    "text{font:12px sans-serif;fill:#333}.frame{stroke:#999;fill:none}.grid{stroke:#ddd}"
    ".line{fill:none;stroke-width:2}.guide{stroke:#999;stroke-dasharray:5 4;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.grid{stroke:#444}}"
)
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """A named axis, linear or logarithmic, from its first tick to its last."""

    label: str
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the first tick, 1 at the last; values beyond lie on the border."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return min(1.0, max(0.0, (value - low) / (high - low)))


def lines(title: str, x: Axis, y: Axis, series: Mapping[str, Points], guide: Points = ()) -> str:
    """One chart with a legend; ``guide`` is a dashed line, points that are not finite are left out."""

    def at(point: tuple[float, float]) -> str:
        across, up = x.place(point[0]), y.place(point[1])
        return f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"

    def path(points: Points) -> str:
        return " ".join(at(point) for point in points if all(map(math.isfinite, point)))

    body = [f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>', *_frame(x, y)]
    if guide:
        body.append(f'<polyline class="guide" points="{path(guide)}"/>')
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        body.append(f'<polyline class="line" stroke="{colour}" points="{path(points)}"/>')
        body += [
            f'<circle cx="{at(p).split(",")[0]}" cy="{at(p).split(",")[1]}" r="2.5" fill="{colour}"/>'
            for p in points
            if all(map(math.isfinite, p))
        ]
        height = TOP + 14 + 17 * number
        edge = WIDTH - RIGHT + 14
        body.append(f'<path class="line" stroke="{colour}" d="M{edge} {height - 4}h16"/>')
        body.append(f'<text x="{edge + 22}" y="{height}">{escape(name)}</text>')
    size = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" height="{HEIGHT:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>' + "\n".join(body) + "</svg>\n"


def _frame(x: Axis, y: Axis) -> list[str]:
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    body = [f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{wide}" height="{high}"/>']
    for tick in x.ticks:
        across = LEFT + x.place(tick) * wide
        body.append(f'<path class="grid" d="M{across:.1f} {TOP}v{high}"/>')
        body.append(f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks:
        up = HEIGHT - BOTTOM - y.place(tick) * high
        body.append(f'<path class="grid" d="M{LEFT} {up:.1f}h{wide}"/>')
        body.append(f'<text x="{LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{tick:g}</text>')
    body.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    turned = f'transform="rotate(-90 14 {TOP + high / 2})"'
    body.append(f'<text x="14" y="{TOP + high / 2}" text-anchor="middle" {turned}>{escape(y.label)}</text>')
    return body
