"""The suite's results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from detector.planning.plan import Question
from detector.planning.plan import delays as delays_of
from tests.statistics.calibrate import Calibration
from tests.statistics.contest import FALSE_ALARMS, Entry
from tests.statistics.exactness import LEVEL, Agreement, Merging
from tests.statistics.peers.roster import PEERS, unavailable, version
from tests.statistics.rates import LEVELS, Rate
from tests.statistics.run_length import Lives
from tests.statistics.scenarios import HORIZON, N_REFERENCE, OMEGAS, WINDOW
from tests.statistics.versus import OURS, Contest

MARGIN = 1.1
"""A delay that is longer by less is called equal."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def calibration(found: Sequence[Calibration]) -> str:
    """Rejection rates; those above their limit are bold."""

    def cell(rate: Rate) -> str:
        text = f"{rate.share:.2e}" if rate.rejected else "0"
        return text if rate.valid else f"**{text}**"

    limits = [f"at {rate.level:g} (limit {rate.limit / rate.trials:.2e})" for rate in found[0].rates]
    rows = [
        [
            one.null.test if one.what == one.null.columns[0] else one.what.replace("drift, ", "… "),
            one.null.name,
            f"{one.null.n_reference} / {one.null.n}",
            *map(cell, one.rates),
        ]
        for one in found
    ]
    bad = sum(not one.valid for one in found)
    trials = found[0].rates[0].trials
    verdict = f"{len(found) - bad} of {len(found)} cases are within the limits at {', '.join(f'{x:g}' for x in LEVELS)}"
    return f"{trials:,} p-values in each case; {verdict}. Under the drift test its parts, one by one.\n\n" + table(
        ["test", "null", "requests: reference / windows", *limits], rows
    )


def quiet(found: Sequence[Lives]) -> str:
    """Run lengths while nothing, or only what is tolerated, happens."""
    rows = []
    for one in found:
        length = f"{one.run_length:,.0f}" if one.alarms else f"> {one.at_least:,.0f}"
        # With few alarms chance decides whether the estimate is above the budget; the limit is on the alarms.
        broken = not one.valid or not one.keeps_budget
        rows.append(
            [
                one.life.name,
                f"{one.life.budget:,.0f}",
                f"{one.models} x {one.windows}",
                str(one.alarms),
                f"**{length}**" if broken else length,
                f"{one.alarmed} (limit {one.allowed})",
            ]
        )
    header = ["null", "budget, windows", "models x windows", "alarms", "run length, windows", "models with an alarm"]
    return table(header, rows)


def moods(found: Sequence[Lives]) -> str:
    """Alarms by strength and length of moods, and by the reference's windows."""
    windows = sorted({one.life.reference_windows for one in found})
    rows: dict[tuple[float, float], list[str]] = {}
    for one in found:
        if one.life.mood is not None:
            alarms = f"{one.alarms}" if one.keeps_budget else f"**{one.alarms}**"
            rows.setdefault((one.life.mood.swing, one.life.mood.correlation), []).append(alarms)
    expected = found[0].models * found[0].windows / found[0].life.budget
    text = (
        f"The share of zeros of a channel wanders around one half. {found[0].models} models were followed for "
        f"{found[0].windows} windows in each case, in which the budget allows {expected:.1f} alarms; more than chance "
        "allows is bold. A reference that is shorter than the moods of its traffic has not seen them.\n\n"
    )
    header = ["standard deviation", "correlation of windows", *(f"reference of {n} windows" for n in windows)]
    return text + table(header, [[f"{s:g}", f"{c:g}", *alarms] for (s, c), alarms in rows.items()])


def planned() -> str:
    """Delays in windows by `detector.planning.plan`: a shift of any shape in one channel of 256 in one of 20 layers."""
    rows = []
    for reference, n in ((1000, 400), (1000, 4000), (5000, 400), (5000, 4000), (20_000, 1000), (20_000, 4000)):
        cells = []
        for omega in OMEGAS[1:]:
            # A window lasts five minutes.
            question = Question(n / 300, omega, reference_requests=reference, design_effect=1.2)
            median, late = delays_of(question, n, reference)
            within = "never" if median == float("inf") else f"{median:.0f}"
            cells.append(within if late == float("inf") else f"{within} / {late:.0f}")
        rows.append([f"{reference:,}", f"{n:,}", *cells])
    header = ["reference", "requests per window", *(f"ω {omega:g}" for omega in OMEGAS[1:])]
    return (
        "Windows of five minutes until a shift of any shape in one channel of 256, in one of 20 layers, is found: "
        "median / nine in ten cases; design effect 1.2, a budget of 90 days.\n\n" + table(header, rows)
    )


def delays(found: Sequence[Lives]) -> str:
    """Windows until the alarm."""
    rows = []
    for one in found:
        share, median, late = one.delay()
        windows = [f"{value:.0f}" if value != float("inf") else f"> {one.windows}" for value in (median, late)]
        rows.append([one.life.name, str(one.life.n), f"{share:.0%}", *windows])
    return table(["change", "requests a window", "found", "median delay, windows", "90 % within"], rows)


def contest(one: Contest) -> str:
    """Found and delay of every detector on every change; the soonest are bold."""
    changes = list(one.entries[0].outcomes)
    best = {name: min(entry.outcomes[name].delay for entry in one.entries) for name in changes}

    def cell(entry: Entry, name: str) -> str:
        outcome = entry.outcomes[name]
        text = f"{outcome.found:.0%}, {outcome.delay:.0f}"
        return f"**{text}**" if outcome.delay <= MARGIN * best[name] and outcome.found >= 0.5 else text

    rows = []
    for entry in one.entries:
        shipped = "" if entry.shipped_false_alarms is None else f"{entry.shipped_false_alarms:.0%}"
        cells = [cell(entry, name) for name in changes]
        streams = f"{entry.healthy_streams}, {entry.outcomes[changes[0]].streams}"
        rows.append([entry.detector, streams, shipped, *cells, f"{entry.seconds_per_million:.2g}"])
    header = ["detector", "streams: healthy, changed", "false alarms as shipped", *changes, "s per 10⁶ values"]
    return f"### {one.family}\n\n" + table(header, rows)


def behind(contests: Sequence[Contest]) -> str:
    """Every change that a peer finds sooner than reluscope does."""
    lines = []
    for one in contests:
        ours = next(entry for entry in one.entries if entry.detector == OURS[1])
        for name, outcome in ours.outcomes.items():
            sooner = [
                f"{entry.detector} ({entry.outcomes[name].delay:.0f})"
                for entry in one.entries
                if entry.detector not in OURS and entry.outcomes[name].delay * MARGIN < outcome.delay
            ]
            if sooner:
                lines.append(f"- {one.family}, {name} ({outcome.delay:.0f}): {', '.join(sooner)}")
    return "\n".join(lines) + "\n" if lines else "Nowhere.\n"


def peers() -> str:
    """Versions, and why some are missing."""
    rows = [[peer.library, version(peer), peer.detector, unavailable(peer) or "compared"] for peer in PEERS]
    rows.append(
        [
            "alibi-detect",
            version(PEERS[0]),
            "MMDDriftOnline, LSDDDriftOnline",
            "need PyTorch or TensorFlow (ImportError)",
        ]
    )
    return table(["library", "version", "detector", ""], rows)


def contest_rules() -> str:
    """How the contest is held, in a paragraph."""
    return (
        f"Healthy references of {N_REFERENCE} requests, then {HORIZON} requests that changed with the first; windows "
        f"of {WINDOW} for detectors that compare windows. Each detector's threshold is set so that it alarms in at "
        f"most {FALSE_ALARMS:.0%} of healthy streams. Cells: share of streams in which the change was found, and mean "
        f"requests until then ({HORIZON} where it was not).\n"
    )


def exactness(merged: Merging, agreements: Sequence[Agreement]) -> str:
    """Merging, then verdicts."""
    same = "are" if merged.identical else "**are not**"
    text = (
        f"{merged.orders} random ways of cutting, ordering and nesting shards: counts, extremes, histograms and the "
        f"p-values of drift and death {same} those of a single pass, bit for bit; sums and moments differ by at most "
        f"{merged.moments:.1e}, relatively.\n\n"
    )
    rows = [
        [
            one.change,
            f"{one.found:.3f}",
            f"{one.found_exact:.3f}",
            f"{one.same:.3f}",
            f"{one.death:.0e}",
            f"{one.distance:.1%}",
        ]
        for one in agreements
    ]
    header = [
        "change",
        f"rejected at {LEVEL:g}, histogram",
        "rejected, raw values",
        "same verdict",
        "death p-value, largest difference",
        "Wasserstein, largest error",
    ]
    return text + table(header, rows)
