"""The report: what it says in each state, that it is one safe file, and that a real browser shows it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner

from agent.summary import from_pooled
from agent.wire import Deployment, Envelope, Probe, ProbeWindow, Window
from deploy.local.postgres import psycopg_url
from detector.domain.finding import Check
from detector.domain.layered import Layered
from detector.domain.slots import Slot
from detector.report import UnknownModel, build_report, plots
from detector.report.command import command
from detector.report.data import gather, mean
from detector.report.queries import queries
from detector.store import Store
from tests.detector.report.scenarios import (
    MINUTE,
    NOW,
    PROBES,
    VERSION,
    FakeStore,
    activations,
    fleet_story,
    paired_story,
    story,
)

DAY = NOW - timedelta(days=1)


def build(store: FakeStore, version: str | None = None) -> str:
    return build_report(store, "digits", version, DAY, NOW)


def verdict(page: str) -> str:
    found = re.search(r'id="verdict".*?<strong>(.*?)</strong>\s*<p>(.*?)</p>', page, re.DOTALL)
    assert found is not None
    return f"{found[1]}: {found[2]}"


class Outline(HTMLParser):
    """Tags, attributes and heading levels of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def test_names_the_cause_and_the_origin_of_dead_neurons() -> None:
    page = build(story("dead"))
    told = verdict(page)
    assert "Dead neurons: the change begins at layer conv2/relu, where 5 of 32 channels fell silent" in told
    assert "shows in 2 later layers; first seen 2026-03-14 11:43 UTC" in told
    assert "channel 3: active in 0 of 2,400 requests; reference 31 %; needed 73 to be sure" in page
    assert (
        '<a href="http://reluscope-detector:8500/runbooks/ReluscopeDeadNeurons/v1">ReluscopeDeadNeurons v1</a>' in page
    )


def test_names_the_shifted_input() -> None:
    assert "Input shift: the change begins at input image" in verdict(build(story("shift")))


def test_tells_of_a_layer_whose_zeros_left_their_band() -> None:
    store = story("dead")
    last = store.done[-1]
    zeros = {"sparsity": 0.713, "sparsity_low": 0.52, "sparsity_high": 0.58}
    found = replace(last.findings[0], test="sparsity", cause="model_change", severity="warning", details=zeros)
    layers = last.layers | {found.layer: last.layers[found.layer] | zeros}
    store.done[-1] = replace(last, findings=(found,), layers=layers)
    page = build(store)
    assert "Model change: the change begins at layer conv2/relu, whose share of zeros left its band" in verdict(page)
    assert "conv2/relu: the share of zeros left its band" in page
    assert re.search(r'<td class="bad">71\.3\s%<small>52\s%\sto 58\s%</small></td>', page)
    assert "zeros left their band; origin" in page


def test_says_that_nothing_changed_and_against_what() -> None:
    store = story("healthy")
    page = build(store)
    assert store.active is not None
    assert verdict(page).startswith("No change found: The newest 2,400 requests differ")
    assert f"{store.active.n:,} requests of the reference" in verdict(page)
    assert "25 checks ran in this period and found nothing" in page


def test_shows_the_slot_of_the_reference_that_the_check_compared_with() -> None:
    store, saturdays = story("shift"), Slot(6, 11)
    assert store.active is not None
    assert "references of its own" not in build(store)
    rng = np.random.default_rng(1)
    store.slots = {saturdays: Layered({p.name: activations(rng, p, 4321, shift=3.0) for p in PROBES}, {})}
    store.active = replace(store.active, slots=(saturdays,))
    drift = store.done[-1].findings[0]
    drift = replace(drift, details=drift.details | {"compared_with": str(saturdays)})
    at = NOW - timedelta(minutes=1)
    store.done.append(
        replace(store.done[-1], finished_at=NOW, findings=(drift,), window_start=at - 9 * MINUTE, window_end=at)
    )
    page = build(store)
    assert "with references of its own for 1 weekday hour" in page
    assert "compared with Saturdays 11:00 UTC" in page
    report = gather(store, "digits", None, DAY, NOW)
    means = [layer.mean_reference for layer in report.layers]
    assert means == [pytest.approx(mean(store.slots[saturdays].summaries[p.name])) for p in PROBES]
    # A check against an older reference tells nothing of this one's slots.
    store.done[-1] = replace(store.done[-1], reference_id=2)
    assert gather(store, "digits", None, DAY, NOW).past == store.active.summaries


def test_does_not_hide_a_change_that_is_over() -> None:
    store = story("dead")
    store.done.append(replace(story("healthy").done[-1], finished_at=NOW))
    page = build(store)
    assert verdict(page).startswith("Over, but it happened")
    assert "Dead neurons: the change begins at layer conv2/relu" in verdict(page)
    assert "conv2/relu: 5 of 32 channels dead" in page


def _idle(status: str, note: str) -> Check:
    check = replace(story("healthy", minutes=20).done[-1], findings=(), layers={}, n=120, note=note)
    return replace(check, status=status, window_start=None, window_end=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "note", "expected"),
    [
        ("no_reference", "120 of 1000 requests for a reference", "No reference yet: There is nothing to compare with"),
        ("too_few_requests", "120 of 200 requests", "Too few requests: The newest windows hold 120 of 200 requests"),
    ],
)
def test_says_why_there_is_no_verdict(status: str, note: str, expected: str) -> None:
    store = replace(story("healthy", minutes=20), active=None, done=[_idle(status, note)])
    page = build(store)
    assert verdict(page).startswith(expected)
    assert f"No tests were made: {note}" in page


def test_empty_states() -> None:
    assert verdict(build(FakeStore(layers=()))).startswith("No data: No window has arrived")
    unchecked = replace(story("healthy", minutes=20), done=[], active=None)
    assert verdict(build(unchecked)).startswith("Not checked yet")


def test_unknown_models_get_a_list_of_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match="unknown model 'digit'; known models: digits"):
        gather(story("healthy", minutes=20), "digit", None, DAY, NOW)
    with pytest.raises(UnknownModel, match="'digits' has no version '9'; its versions: 2"):
        gather(story("healthy", minutes=20), "digits", "9", DAY, NOW)
    with pytest.raises(UnknownModel, match="no model has reported yet"):
        gather(FakeStore(version=None), "digits", None, DAY, NOW)


def test_names_from_outside_stay_text() -> None:
    hostile = '"><script>alert(1)</script>'
    probes = tuple(replace(p, name=hostile) if p.position == 2 else p for p in PROBES)
    store = story("dead", probes=probes, minutes=30)
    store.received = [replace(a, annotations={"runbook_url": "javascript:alert(1)"}) for a in store.received]
    page = build(store)
    assert "<script" not in page
    assert 'href="javascript' not in page


def test_is_one_file_with_headings_captions_and_texts_for_all_pictures() -> None:
    outline = Outline(build(story("dead")))
    links = [a["href"] for a in outline.named("a")]
    assert all(a.get("src") is None for _, a in outline.tags)
    assert [a["href"] for a in outline.named("link")] == ["data:,"]
    assert links == ["http://reluscope-detector:8500/runbooks/ReluscopeDeadNeurons/v1"]
    assert all(a["role"] == "img" and a["aria-label"] for a in outline.named("svg"))
    assert len(outline.named("caption")) == len(outline.named("table")) == 3
    assert [tag for tag, _ in outline.tags if tag in ("h1", "h2")] == ["h1", *["h2"] * 6]
    assert all(a.get("scope") for a in outline.named("th"))


def test_paired_replay_has_its_verdict_table_and_ratios() -> None:
    page = build(paired_story())
    assert verdict(page) == (
        "Change found, critical: Hardware mismatch: fc1/relu: on pod-c (CUDAExecutionProvider) 11 of 180 requests "
        "differ from CPUExecutionProvider beyond tolerance, first at this layer; on 1 other agent 0 of 180; "
        "first seen 2026-03-14 11:58 UTC. Also found: quantization fault."
    )
    assert "conv2/relu: differs from reference.onnx</h3>" in page
    assert "conv2/relu: differs from the reference model on holdout.npz</h3>" in page
    assert page.count('class="card ') == 5
    assert "channel 5: active only in the baseline in 40, only as served in 2 of 312 requests" in page
    text = " ".join(re.sub(r"<[^>]+>", " ", page[page.index('id="paired"') :]).split())
    assert "Reference model reference.onnx 1 312 90.1 % – – 5.8 dB logits" in text
    assert "Labelled holdout holdout.npz 1 500 91 % 88.2 % 95.6 % – 6.1 dB logits" in text
    assert "The same file on the CPU CPUExecutionProvider 2 360 100 % – 3.1 %" in text
    charts = [a["aria-label"] for a in Outline(page).named("svg") if a["class"] == "ratio"]
    assert charts == [
        "image: ∞", "conv1/relu: 34.2 dB", "conv2/relu: 7.9 dB", "fc1/relu: 6.4 dB", "logits: 5.8 dB",
    ]  # fmt: skip
    assert len(Outline(page).named("caption")) == len(Outline(page).named("table"))


def test_a_page_without_comparisons_does_not_mention_them() -> None:
    assert "Paired replay</h2>" not in build(story("healthy", minutes=20))


def test_comparisons_are_shown_also_where_they_found_nothing() -> None:
    store = paired_story()
    store.done[-1] = replace(store.done[-1], findings=(), status="ok")
    assert "Labelled holdout" in build(store)


def test_an_odd_pod_is_named_with_its_layer_and_distance() -> None:
    page = build(fleet_story())
    told = verdict(page)
    assert told.startswith("Change found, warning: Odd pod: agent pod-c: mean of conv1/relu at 1.")
    assert "standard deviations from the fleet; its inputs are not odd, and shows in 1 later layer" in told
    assert "<h3>conv1/relu: 1 agent unlike the fleet</h3>" in page
    assert "600 against 1,800 requests of other agents" in page
    assert "alert: ReluscopeOddPod" in page
    assert page.count('class="shape"') == 0
    assert "more channel" not in page
    assert '<td class="text">odd pod; origin</td>' in page


def test_fifty_layers_fit_in_a_megabyte() -> None:
    def layer(position: int) -> Probe:
        return replace(PROBES[2], name=f"block{position}/relu", position=position, channels=16)

    probes = (PROBES[0], *(layer(position) for position in range(1, 50)))
    store = story("shift", probes=probes, minutes=100)
    page = build(store)
    assert len(page.encode()) < 1_000_000
    assert page.count('class="shape"') == 24
    assert page.count('class="card') == 50


def test_bins_keep_every_request() -> None:
    rng = np.random.default_rng(1)
    values = np.maximum(rng.normal(0, 1, (500, 2)), 0) * [1, 0]
    reference = from_pooled(values, values, (values > 0) * 1.0)
    shifted = from_pooled(values * 4 - 1, values, (values > 0) * 1.0)
    for channel in (0, 1):
        now, then, edges = plots.shapes(shifted.mean_histogram, reference.mean_histogram, channel)
        assert then is not None
        assert len(edges) == plots.BINS + 1
        assert now.zero + now.bins.sum() == pytest.approx(1)
        assert then.zero + then.bins.sum() == pytest.approx(1)
        assert (then.zero == 1) == (channel == 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.12345, "0.123"), (2400, "2,400"), (1e-40, "1e-40"), (3e7, "3.00e07")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert plots.number(value) == text


def _ingest(store: Store) -> None:
    """Deploys a version and plays ten windows into a real store."""
    rng = np.random.default_rng(2)
    start = int(DAY.timestamp() * 1000)
    bodies: list[Deployment | Window] = [Deployment(start, PROBES, (), "CPUExecutionProvider")]
    for minute in range(10):
        layers = tuple(ProbeWindow(p, activations(rng, p, 50)) for p in PROBES)
        bodies.append(Window(start + minute * 60_000, start + (minute + 1) * 60_000, layers))
    messages = [Envelope("pod-a", 1, i, "digits", "2", "4f" * 32, body) for i, body in enumerate(bodies)]
    store.ingest("reluscope.windows", 0, None, len(messages), messages)


def _keep(store: Store) -> None:
    version = store.model_version("digits", "2")
    assert version is not None
    end = DAY + 5 * MINUTE
    summaries = store.summaries(version.id, DAY, end)
    kept = store.save_reference(version.id, "first_requests", version.id, DAY, end, 250, summaries)
    check = replace(story("dead").done[-1], model_version_id=version.id, reference_id=kept, finished_at=NOW)
    store.save_check(replace(check, window_start=end, window_end=DAY + 10 * MINUTE), {})


def test_reads_a_real_database_and_its_queries_run(database_url: str) -> None:
    store = Store(database_url)
    try:
        _ingest(store)
        assert verdict(build_report(store, "digits", None, DAY, NOW)).startswith("Not checked yet: 500 requests")
        _keep(store)
        page = build_report(store, "digits", "2", DAY, NOW)
        report = gather(store, "digits", "2", DAY, NOW)
    finally:
        store.close()
    assert "Dead neurons: the change begins at layer conv2/relu" in verdict(page)
    rows: dict[str, Sequence[tuple[object, ...]]] = {}
    with psycopg.connect(psycopg_url(database_url)) as connection:
        for title, statement in queries(report.version, DAY, NOW, report.shown):
            rows[title] = connection.execute(statement.encode()).fetchall()
    assert [(row[0], row[4]) for row in rows["Layers"]] == [(p.name, 250) for p in PROBES]
    shown = {layer.name: layer for layer in report.layers}
    for row in rows["Layers"]:
        assert row[5:] == pytest.approx((shown[str(row[0])].active, shown[str(row[0])].mean, shown[str(row[0])].max))
    assert len(rows["Timeline"]) == 10 * len(PROBES)
    assert [row[2] for row in rows["Findings: dead channels"]] == [3, 7, 11, 19, 20]
    assert {row[1] for row in rows["Findings: drift, explosion and sparsity"]} == {"fc1/relu", "logits"}


def test_sql_literals_are_quoted() -> None:
    statements = queries(replace(VERSION, model="it's; DROP TABLE x"), DAY, NOW, None)
    assert all("model = 'it''s; DROP TABLE x'" in statement for _, statement in statements)


def test_command_writes_the_file(database_url: str, tmp_path: Path) -> None:
    store = Store(database_url)
    _ingest(store)
    store.close()
    output = tmp_path / "report.html"
    options = ["--database-url", database_url, "--since", DAY.isoformat(), "--output", str(output)]
    done = CliRunner().invoke(command, ["--model", "digits", *options])
    assert done.exit_code == 0, done.output
    assert "digits" in output.read_text()
    unknown = CliRunner().invoke(command, ["--model", "dogits", *options])
    assert unknown.exit_code == 1
    assert "unknown model 'dogits'; known models: digits" in unknown.output
    elsewhere = CliRunner().invoke(command, ["--model", "digits", *options, "--output", str(tmp_path / "no" / "x")])
    assert elsewhere.exit_code == 1
    assert "cannot write" in elsewhere.output


@pytest.mark.parametrize("since", ["yesterday", "24", "0h", "-1h", "2999-01-01"])
def test_command_refuses_a_span_that_is_none(since: str) -> None:
    done = CliRunner().invoke(command, ["--model", "m", "--database-url", "postgresql+psycopg://h/d", "--since", since])
    assert done.exit_code == 2
    assert "--since" in done.output


QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["dead", "shift", "healthy", "paired", "empty"])
def test_a_real_browser_shows_it_without_errors(chromium: str, tmp_path: Path, kind: str) -> None:
    page = tmp_path / "report.html"
    stores = {"empty": FakeStore(layers=()), "paired": paired_story()}
    page.write_text(build(stores.get(kind) or story(kind)), "utf-8")
    shown = subprocess.run(
        [chromium, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    told = {"dead": "Dead neurons", "shift": "Input shift", "healthy": "No change found", "empty": "No data",
            "paired": "Hardware mismatch"}[kind]  # fmt: skip
    assert told in verdict(shown.stdout)
    assert "CONSOLE" not in shown.stderr
