"""The page of whole lives: alarms found beside alarms allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from detector.statistics.sequential import FAMILIES
from tests.statistics.lives import AGENTS, SETTINGS, Outcome
from tests.statistics.pages import Page
from tests.statistics.rates import most_alarms
from tests.statistics.tables import table


def page(found: Sequence[Outcome]) -> Page:
    """One row per null, and all together."""
    days, alarms = sum(one.days for one in found), sum(one.found for one in found)
    allowed = days / SETTINGS.false_page_days
    text = (
        "Whole lives of models on which nothing happens, through the detector's own path: the reference is chosen, "
        "windows are cut into batches and every family is tested as shipped, at the shipped budget of one page in "
        f"{SETTINGS.false_page_days:g} days. Windows last an hour and come from {AGENTS} agents. Every life has a "
        "reference of its own, and a population whose laws are drawn anew (real networks: the same one), so the "
        "figures are averages over references. Their requests are drawn from the population with replacement: nothing "
        "has changed, exactly.\n\n"
        f"{days:,.0f} model-days, in which the budget allows {allowed:.1f} pages: {alarms} found. More than chance "
        f"allows is bold. The largest evidence ever was {max(one.largest for one in found):.1g} of the threshold.\n\n"
    )
    rows = [
        [
            one.null.name, f"{one.null.traffic.requests}", f"{one.models}", f"{one.days:,.0f}", f"{one.allowed:.1f}",
            str(one.found) if one.keeps_budget else f"**{one.found}**", _families(one), f"{one.largest:.1g}",
        ]
        for one in found
    ]  # fmt: skip
    header = [
        "null",
        "requests a window",
        "models",
        "model-days",
        "pages allowed",
        "found",
        "families",
        "most evidence",
    ]
    figures = {
        "model_days": days,
        "pages_allowed": allowed,
        "pages_found": alarms,
        "limit": most_alarms(allowed),
        "nulls": [_figures(one) for one in found],
    }
    return Page("Lives on which nothing happens", text + table(header, rows), figures)


def _families(one: Outcome) -> str:
    return ", ".join(f"{family} {one.alarms[family]}" for family in FAMILIES if one.alarms[family]) or "–"


def _figures(one: Outcome) -> dict[str, object]:
    return {
        "null": one.null.name,
        **asdict(one.null.traffic),
        "reference_hours": one.null.reference_hours,
        "models": one.models,
        "model_days": one.days,
        "pages_allowed": one.allowed,
        "alarms": one.alarms,
        "most_evidence": one.largest,
    }
