"""One page, its charts and its figures for each part of the suite: what `__main__` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.statistics import tables
from tests.statistics.calibrate import CURVE, Calibration
from tests.statistics.charts import Axis, lines
from tests.statistics.exactness import Agreement, Merging
from tests.statistics.run_length import Lives
from tests.statistics.scenarios import HORIZON, OMEGAS
from tests.statistics.versus import OURS, Contest

COMMAND = "`make statistics ARGS='--parts {}'` made this page; its figures are in [{}.json]({}.json).\n"


@dataclass(frozen=True, slots=True)
class Page:
    """A part's results."""

    title: str
    text: str
    figures: Mapping[str, Any]
    charts: Mapping[str, str] = field(default_factory=dict)
    """SVG by file name."""

    def write(self, folder: Path, name: str) -> None:
        """`<name>.md`, `<name>.json` and the charts."""
        folder.mkdir(parents=True, exist_ok=True)
        pictures = "".join(f"\n![{chart.removesuffix('.svg')}]({chart})\n" for chart in self.charts)
        made = COMMAND.format(name, name, name)
        (folder / f"{name}.md").write_text(f"# {self.title}\n\n{made}{pictures}\n{self.text}")
        (folder / f"{name}.json").write_text(json.dumps(self.figures, indent=1, ensure_ascii=False) + "\n")
        for chart, svg in self.charts.items():
            (folder / chart).write_text(svg)


def calibration(found: Sequence[Calibration]) -> Page:
    """Rejection rates against levels."""
    trials = found[0].rates[0].trials
    figures = [
        {
            "test": one.null.test,
            "what": one.what,
            "null": one.null.name,
            "n_reference": one.null.n_reference,
            "n": one.null.n,
            "p_values": trials,
            "rejected": {f"{rate.level:g}": rate.rejected for rate in one.rates},
            "limit": {f"{rate.level:g}": rate.limit for rate in one.rates},
            "valid": one.valid,
        }
        for one in found
    ]
    ticks = tuple(10.0**k for k in range(-6, 1))
    charts = {}
    for number, test in enumerate(dict.fromkeys(one.null.test for one in found)):
        series = {
            f"{one.null.name}"[:28]: [(x, k / trials) for x, k in zip(CURVE, one.curve, strict=True) if k >= 5]
            for one in found
            if one.null.test == test and one.what == one.null.columns[0] and one.null.n <= 300
        }
        svg = lines(f"{test}: rejected", Axis("level", ticks, True), Axis("share", ticks, True), series, _diagonal())
        charts[f"calibration-{number + 1}.svg"] = svg
    return Page("Null calibration", tables.calibration(found), {"cases": figures}, charts)


def run_lengths(quiet: Sequence[Lives], moody: Sequence[Lives], changed: Sequence[Lives]) -> Page:
    """Silence and delay of the detector over time."""
    text = (
        "## While nothing happens\n\nRun lengths below the budget by more than chance allows are bold.\n\n"
        f"{tables.quiet(quiet)}\n## While the traffic has moods\n\n{tables.moods(moody)}\n"
        "## When something does\n\n"
        f"The budget is one alarm in {changed[0].life.budget:,.0f} windows, 90 days of five minutes.\n\n"
        f"{tables.delays(changed)}\n## What `reluscope plan` expects\n\n{tables.planned()}"
    )
    series: dict[str, list[tuple[float, float]]] = {}
    for one in changed:
        if one.life.family != "drift":
            continue
        kind = one.life.name.replace(f" ω {_omega(one.life.name):g}", "")
        series.setdefault(f"{kind}, n {one.life.n}"[:30], []).append((_omega(one.life.name), one.delay()[1]))
    axes = Axis("Cohen's ω", (0.1, 0.2, 0.3, 0.4, 0.5)), Axis("windows", (1, 3, 10, 30, 100, 300, 1000), True)
    figures = {
        "quiet": [
            {
                "null": one.life.name, "budget_windows": one.life.budget, "models": one.models, "windows": one.windows,
                "alarms": one.alarms, "models_with_alarm": one.alarmed, "limit": one.allowed,
                "keeps_budget": one.keeps_budget,
            }
            for one in quiet
        ],
        "moods": [
            {
                "swing": mood.swing, "correlation": mood.correlation, "reference_windows": one.life.reference_windows,
                "alarms": one.alarms, "models": one.models, "windows": one.windows,
            }
            for one in moody if (mood := one.life.mood)
        ],
        "changed": [
            {
                "change": one.life.name, "n": one.life.n, "found": one.delay()[0],
                "median_windows": _finite(one.delay()[1]), "late_windows": _finite(one.delay()[2]),
            }
            for one in changed
        ],
    }  # fmt: skip
    return Page("Run length and delay", text, figures, {"delay.svg": lines("Median delay", *axes, series)})


def exactness(merged: Merging, agreements: Sequence[Agreement]) -> Page:
    """Merging and sketches."""
    figures = {
        "merging": {"orders": merged.orders, "identical": merged.identical, "moments": merged.moments},
        "agreement": [
            {"change": one.change, "found": one.found, "found_exact": one.found_exact, "same": one.same}
            for one in agreements
        ],
    }
    return Page("Exactness of summaries", tables.exactness(merged, agreements), figures)


def peers(contests: Sequence[Contest]) -> Page:
    """The contest."""
    text = f"{tables.contest_rules()}\n{tables.peers()}\n"
    text += "\n".join(tables.contest(one) for one in contests)
    text += (
        f"\n## Where reluscope is behind\n\nChanges that a peer finds at least {tables.MARGIN - 1:.0%} sooner, "
        f"with the mean delays in requests.\n\n{tables.behind(contests)}"
    )
    dense = contests[0]
    names = {f"values ω {omega:g}": omega for omega in OMEGAS}
    series = {
        entry.detector: [(names[name], outcome.delay) for name, outcome in entry.outcomes.items() if name in names]
        for entry in dense.entries
    }
    axes = Axis("Cohen's ω", (0.1, 0.2, 0.3, 0.4, 0.5)), Axis("requests", (50, 100, 200, 500, 1000, HORIZON), True)
    figures = {
        one.family: {
            entry.detector: {
                "healthy_streams": entry.healthy_streams, "false_alarms": entry.false_alarms,
                "false_alarms_as_shipped": entry.shipped_false_alarms, "seconds_per_million": entry.seconds_per_million,
                "found": {name: outcome.found for name, outcome in entry.outcomes.items()},
                "delay": {name: outcome.delay for name, outcome in entry.outcomes.items()},
            }
            for entry in one.entries
        }
        for one in contests
    }  # fmt: skip
    title = f"Mean delay, {dense.family}"
    return Page("Beside other libraries", text, figures | {"ours": OURS}, {"peers.svg": lines(title, *axes, series)})


def _diagonal() -> list[tuple[float, float]]:
    return [(1e-6, 1e-6), (1.0, 1.0)]


def _omega(name: str) -> float:
    return next(omega for omega in OMEGAS if f"ω {omega:g}" in name.split(",")[0] or name.endswith(f"ω {omega:g}"))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
