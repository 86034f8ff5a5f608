"""What the report shows of paired replay: a table of baselines, and a chart of each layer's SQNR."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from detector.domain.finding import Agreement, Check, ProbeAgreement
from detector.report import plots
from detector.report.words import KINDS


@dataclass(frozen=True, slots=True)
class Row:
    """One baseline."""

    what: str
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Ratio:
    """One layer of a model beside its reference."""

    probe: ProbeAgreement
    chart: Markup
    lost: bool
    """Whether the check found that the layer lost its signal."""


def rows(check: Check | None) -> list[Row]:
    """Every baseline that the check looked at."""
    return [Row(KINDS[one.kind], one) for one in check.comparisons] if check else []


def ratios(check: Check | None) -> list[Ratio]:
    """Layers in graph order, against the reference model; against the holdout's where no requests were compared."""
    if check is None:
        return []
    found = {one.kind: one for one in reversed(check.comparisons) if one.probes}
    shown = found.get("reference_model") or found.get("holdout")
    if shown is None:
        return []
    lost = {f.layer for f in check.findings if f.test == "quantization" and "sqnr_db" in f.details}
    return [Ratio(probe, plots.ratio(probe.sqnr_db, probe.layer), probe.layer in lost) for probe in shown.probes]
