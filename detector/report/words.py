"""A report's sentences: the verdict, counts, times and causes in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from detector.domain.finding import NOT_BY_CHANNEL, Check, Finding
from detector.store import ModelVersion, Reference, Span

CAUSES = {
    "input_shift": "Input shift",
    "dead_neurons": "Dead neurons",
    "activation_explosion": "Activation explosion",
    "quantization_fault": "Quantization fault",
    "hardware_mismatch": "Hardware mismatch",
    "model_change": "Model change",
    "telemetry_gap": "Telemetry gap",
    "slo_burn": "Objective burning",
}
KINDS = {
    "reference_model": "Reference model",
    "holdout": "Labelled holdout",
    "cpu_provider": "The same file on the CPU",
    "served_response": "What the server answered",
}
"""Baselines of paired replay."""
_VERBS = {"dead": "fell silent or nearly so", "drift": "drifted", "explosion": "exploded"}


@dataclass(frozen=True, slots=True)
class Headline:
    """The sentence on top."""

    tone: str
    """ok, warning, critical or unknown."""
    title: str
    sentence: str


def conclude(
    version: ModelVersion,
    since: datetime,
    spans: Sequence[Span],
    reference: Reference | None,
    checks: Sequence[Check],
    shown: Check | None,
) -> Headline:
    """The verdict of the newest check, or why there is none."""
    if not spans and not checks:
        last = f" The last window ended {when(version.last_window_end)}." if version.last_window_end else ""
        return Headline(
            "unknown", "No data", f"No window has arrived since {when(since)}, so nothing can be said.{last}"
        )
    if not checks:
        total = sum(span.n for span in spans)
        return Headline("unknown", "Not checked yet", f"{plural(total, 'request')} arrived, but no check has run yet.")
    latest = checks[-1]
    earlier = _earlier(shown)
    if latest.status == "no_reference":
        how = "" if reference is None else " There is one now; the next check will use it."
        told = latest.note or "no requests to make one of"
        return Headline("unknown", "No reference yet", f"There is nothing to compare with: {told}.{how}{earlier}")
    if latest.status == "too_few_requests":
        told = latest.note or plural(latest.n, "request")
        return Headline("unknown", "Too few requests", f"The newest windows hold {told}, too few to judge.{earlier}")
    if latest.findings:
        return _found(latest, _began(checks))
    against = plural(reference.n, "request") + " of the reference" if reference else "the reference"
    sentence = f"The newest {plural(latest.n, 'request')} differ from the {against} in none of "
    sentence += f"{plural(len(latest.layers), 'observed tensor')}."
    if earlier:
        return Headline("warning", "Over, but it happened", sentence + earlier)
    return Headline("ok", "No change found", sentence)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Origins first, critical ones before others, then the rest in graph order."""
    return sorted(findings, key=lambda f: (not f.origin, f.origin and f.severity != "critical", f.position, f.test))


def _earlier(shown: Check | None) -> str:
    if shown is None or not shown.findings:
        return ""
    return f" Earlier, at {when(shown.finished_at)}: {_found(shown, None).sentence}"


def _began(checks: Sequence[Check]) -> datetime | None:
    """When the unbroken run of checks with findings began that lasts until now; None where it may be older."""
    began = None
    for check in reversed(checks):
        if not check.findings:
            return began
        began = check.finished_at
    return None


def _found(check: Check, began: datetime | None) -> Headline:
    findings = in_order(check.findings)
    origin = findings[0]
    after = _after(origin, findings)
    sentence = f"{_headline(origin)}: {_told(origin)}"
    if after:
        sentence += f", and shows in {plural(len(after), 'later layer')}"
    elif origin.test not in NOT_BY_CHANNEL:
        sentence += ", and in no later layer"
    sentence += f"; first seen {when(began)}." if began else "."
    others = sorted({_headline(f).lower() for f in findings} - {_headline(origin).lower()})
    sentence += f" Also found: {', '.join(others)}." if others else ""
    tone = "critical" if any(f.severity == "critical" for f in findings) else "warning"
    return Headline(tone, f"Change found, {tone}", sentence)


def _after(origin: Finding, findings: Iterable[Finding]) -> set[str]:
    """The layers behind the origin that show the same."""
    if origin.test == "fleet":  # has one finding for all layers
        return set(origin.details.get("layers", ())) - {origin.layer}
    whole = origin.test in NOT_BY_CHANNEL
    alike = (f for f in findings if (f.test == origin.test if whole else f.test not in NOT_BY_CHANNEL))
    return {f.layer for f in alike if f.position > origin.position}


def _headline(finding: Finding) -> str:
    """An odd pod is one whatever its cause; what it is told with says the rest."""
    return "Odd pod" if finding.test == "fleet" else CAUSES.get(finding.cause, finding.cause)


def _told(origin: Finding) -> str:
    if origin.test in NOT_BY_CHANNEL:
        return origin.summary
    where = f"the change begins at {_kind(origin)} {origin.layer}"
    if origin.test == "sparsity":
        return f"{where}, whose share of zeros left its band"
    text = f"{where}, where {len(origin.channels):,} of {plural(origin.channels_total, 'channel')} {_verb(origin)}"
    return text if origin.details.get("shown_now", True) else f"{text} in earlier windows"


def _verb(finding: Finding) -> str:
    if finding.test == "dead" and not finding.details.get("dormant"):
        return "fell silent"
    if finding.test == "explosion" and finding.details.get("channels_grown") == 0 and finding.details.get("nonfinite"):
        return "are not finite"
    return _VERBS.get(finding.test, "changed")


def _kind(finding: Finding) -> str:
    return {"input": "input", "output": "output"}.get(finding.kind, "layer")


def plural(count: int, noun: str) -> str:
    """ "1 request", "2,000 requests"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def when(time: datetime | None) -> str:
    """A time in UTC, to the second only where it has seconds."""
    if time is None:
        return "–"
    utc = time.astimezone(tz=UTC)
    return utc.strftime("%Y-%m-%d %H:%M:%S UTC" if utc.second else "%Y-%m-%d %H:%M UTC")


def ago(time: datetime, now: datetime) -> str:
    """How long ago, in the largest fitting unit."""
    seconds = max((now - time) / timedelta(seconds=1), 0)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return f"{plural(int(seconds // size), unit)} ago"
    return f"{plural(int(seconds), 'second')} ago"
