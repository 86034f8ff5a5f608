"""The suite from end to end, on sizes that prove nothing but that it runs and what it writes can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.statistics import __main__ as suite
from tests.statistics import fleets, lives, tables, versus
from tests.statistics.charts import Axis, lines
from tests.statistics.digits import corruptions

TINY = ["--p-values", "400", "--models", "20", "--windows", "3", "--streams", "20", "--workers", "2"]
COMMAND = "python -m tests.statistics"


def first_three(scenes: Callable[[], list[fleets.Scene]]) -> Callable[[], list[fleets.Scene]]:
    return lambda: scenes()[:3]


@pytest.mark.parametrize("part", ["calibration", "run-length", "exactness", "peers", "fleet", "sparsity", "lives"])
def test_every_part_writes_a_page_its_figures_and_its_charts(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versus, "PEERS", ())
    families = lives.nulls()
    monkeypatch.setattr(lives, "nulls", lambda: families[:2])
    monkeypatch.setattr(lives, "real", list)
    monkeypatch.setattr(versus, "corruptions", lambda: corruptions()[:2])
    for scenes in ("quiet", "spread_out", "odd"):
        monkeypatch.setattr(fleets, scenes, first_three(getattr(fleets, scenes)))
    monkeypatch.setattr(tables, "unavailable", lambda peer: "not in this test")
    monkeypatch.setattr("sys.argv", [COMMAND, "--parts", part, "--out", str(tmp_path), *TINY])
    suite.main()
    page = (tmp_path / f"{part}.md").read_text()
    assert page.startswith("# ")
    assert "| --- |" in page
    assert json.loads((tmp_path / f"{part}.json").read_text())
    charts = list(tmp_path.glob("*.svg"))
    assert bool(charts) == (part not in ("exactness", "fleet", "sparsity", "lives"))
    for chart in charts:
        assert ElementTree.parse(chart).getroot().tag.endswith("svg")
        assert f"({chart.name})" in page


def test_a_chart_leaves_out_what_is_not_finite_and_keeps_to_its_frame() -> None:
    axis = Axis("x", (0.1, 1.0, 10.0), log=True)
    assert (axis.place(0.1), axis.place(1.0), axis.place(1e9)) == pytest.approx((0, 0.5, 1))
    svg = ElementTree.fromstring(lines("a < b", axis, axis, {"one": [(0.1, 1.0), (1.0, float("inf"))]}))
    (line,) = (element for element in svg if element.tag.endswith("polyline"))
    assert len(line.attrib["points"].split()) == 1
