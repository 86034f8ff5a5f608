"""The page itself: charts and tables of a `Report`, rendered into one self-contained HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import jinja2
from markupsafe import Markup

from agent.summary import Summary
from detector.domain.finding import NOT_BY_CHANNEL, PAIRED, Finding
from detector.domain.slots import counted
from detector.domain.words import percent
from detector.report import paired, plots
from detector.report.data import Layer, Report, ReportStore, gather
from detector.report.queries import queries
from detector.report.timeline import axis_of, multiples, thinned
from detector.report.words import CAUSES, ago, plural, when
from detector.store import AlertRow

SHAPES = 24
"""Histograms on one page: the origin's and the worst ones; the table names the rest."""
SHAPES_PER_FINDING = 3
SENTENCES = 5
"""Channels of an origin whose evidence is spelt out."""
SENTENCES_LATER = 2
"""The same where the change only passes through."""
_ORIGINS = {
    "windows": "chosen windows",
    "first_requests": "the first requests after its deployment",
    "offline": "a calibration run",
    "previous_version": "the version before it",
}


@dataclass(frozen=True, slots=True)
class Card:
    """One finding as shown."""

    finding: Finding
    title: str
    charts: tuple[tuple[str, Markup], ...]
    """(caption, chart)."""
    sentences: tuple[str, ...]
    more: int
    """Channels without a sentence."""


def build_report(store: ReportStore, model: str, version: str | None, since: datetime, now: datetime) -> str:
    """The report as HTML, over what the store holds between ``since`` and ``now``.

    ``version`` None takes the newest. Raises `detector.report.UnknownModel`, which lists the known ones.
    """
    return render(gather(store, model, version, since, now))


def render(report: Report) -> str:
    """``report`` as one HTML document without any external resource."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("detector.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=plots.number, percent=percent, decibels=plots.decibels, when=when)
    axis = axis_of(report)
    spans = [(s.start.timestamp(), s.end.timestamp(), s.n) for s in report.spans]
    requests = sum(n for *_, n in spans)
    label = f"Requests per window, {plural(requests, 'request')} in {plural(len(spans), 'window')}"
    return environment.get_template("report.html.j2").render(
        report=report,
        requests=requests,
        peak=max((n for *_, n in spans), default=0),
        bars=plots.bars(thinned(spans), axis, label) if spans else None,
        axis=axis,
        start=when(datetime.fromtimestamp(axis.start, report.now.tzinfo)),
        end=when(datetime.fromtimestamp(axis.end, report.now.tzinfo)),
        marks={kind for _, kind in axis.marks},
        multiples=multiples(report, axis),
        cards=_cards(report),
        compared=report.compared,
        comparisons=paired.rows(report.compared),
        ratios=paired.ratios(report.compared),
        paired_tests=PAIRED,
        layers=report.layers,
        conclusion=_conclusion,
        alerts=[(alert, _link(alert)) for alert in report.alerts],
        causes=CAUSES,
        counted=counted,
        origins=_ORIGINS,
        queries=queries(report.version, report.since, report.now, report.shown),
        ago=ago,
        plural=plural,
    )


def _cards(report: Report) -> list[Card]:
    cards: list[Card] = []
    left = SHAPES
    for finding in report.findings:
        now, then = report.current.get(finding.layer), report.past.get(finding.layer)
        # All agents' values against the reference say little on the same requests on two sides, or on one odd agent.
        by_channel = finding.test not in NOT_BY_CHANNEL
        worst = ([e.channel for e in finding.evidence] or list(finding.channels)) if by_channel else []
        # Where space is short every finding gets its worst channel before any gets a second.
        room = min(SHAPES_PER_FINDING, left - (len(report.findings) - len(cards) - 1))
        charts = [] if now is None else [c for c in worst if c < now.channels][: max(room, min(left, 1))]
        left -= len(charts)
        drawn = tuple(_shape(finding, c, now, then) for c in charts if now is not None)
        sentences = tuple(e.text for e in finding.evidence[: SENTENCES if finding.origin else SENTENCES_LATER])
        more = len(finding.channels) - len(sentences) if sentences else 0
        if finding.test == "fleet":  # a sentence per agent, of which the summary has the first
            sentences, more = sentences[1:], 0
        cards.append(Card(finding, _title(finding), drawn, sentences, more))
    return cards


def _title(finding: Finding) -> str:
    if finding.test == "fleet":
        odd = finding.details.get("agents", [])
        return f"{finding.layer}: {plural(len(odd), 'agent')} unlike the fleet"
    if finding.test in PAIRED:
        against = finding.details.get("against", "its baseline")
        return f"{finding.layer}: differs from {against}"
    if finding.test == "sparsity":
        return f"{finding.layer}: the share of zeros left its band"
    what = {"dead": "dead", "drift": "drifted", "explosion": "exploded"}.get(finding.test, finding.test)
    return f"{finding.layer}: {len(finding.channels):,} of {plural(finding.channels_total, 'channel')} {what}"


def _shape(finding: Finding, channel: int, now: Summary, then: Summary | None) -> tuple[str, Markup]:
    exploded = finding.test == "explosion"
    current = now.max_histogram if exploded else now.mean_histogram
    reference = None if then is None else then.max_histogram if exploded else then.mean_histogram
    if reference is not None and channel >= reference.channels:
        reference = None
    a, b, edges = plots.shapes(current, reference, channel)
    what = "maximum" if exploded else "mean"
    caption = f"channel {channel}, pooled {what}"
    if a.zero or (b and b.zero):
        caption += f"; exactly zero: {percent(a.zero)}" + (f", reference {percent(b.zero)}" if b else "")
    return caption, plots.overlay(a, b, edges, f"Distribution of {finding.layer}, {caption}")


def _conclusion(layer: Layer) -> str:
    words = {
        "dead": "dead channels", "drift": "drifted", "explosion": "exploded", "sparsity": "zeros left their band",
        "quantization": "signal lost",
        "hardware": "hardware mismatch", "response": "unlike the response", "fleet": "odd pod",
    }  # fmt: skip
    told = ", ".join(words.get(test, test) for test in layer.tests)
    return f"{told}; origin" if told and layer.origin else told or ("no change" if layer.counts else "not checked")


def _link(alert: AlertRow) -> str | None:
    """The pinned runbook's address; only web addresses become links, because annotations come from outside."""
    url = (alert.annotations or {}).get("runbook_url", "")
    return url if urlsplit(url).scheme in ("http", "https") else None
