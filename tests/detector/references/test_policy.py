"""Where versions get their references from: policies, kinship, pinned references, and what people accept."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner, Result

from agent.wire import Deployment, Envelope, Kinship, LayerKinship, ProbeWindow, Window
from deploy.local.postgres import psycopg_url
from detector.checks.check import CheckSettings
from detector.checks.every import run_all
from detector.domain.types import ModelVersion, Policy, Reference, ReferencePolicy, RefusedProbe
from detector.references import command as reference
from detector.references.choice import ensure, waiting
from detector.references.making import from_windows
from detector.store import Store
from tests.detector.fakes import START, WINDOW, FakeStore, kin, probe, rectified, summarise

PROBES = [probe("image", 0, 1, "input"), probe("relu", 1, 8)]
LATER = START + timedelta(hours=1)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def fill(store: FakeStore, version: ModelVersion, windows: int, first: int = 0) -> None:
    rng = np.random.default_rng(version.id)
    for i in range(first, first + windows):
        store.add_window(version, {"relu": summarise(rectified(rng, 250, 8))}, START + i * WINDOW)


def successor(store: FakeStore, policy: Policy, near: bool | None) -> tuple[Reference | None, ModelVersion]:
    """The reference of version 2 after its first requests, where version 1 has one."""
    fill(store, store.add_version("1", PROBES), 3)
    second = store.add_version("2", PROBES)
    fill(store, second, 3)
    if policy != "auto":
        store.policies.append(ReferencePolicy(policy))
    if near is not None:
        store.kinships[second.id, "0" * 64] = kin(np.random.default_rng(0), near=near)
    return ensure(store, second, 600, LATER), second


@pytest.mark.parametrize(
    ("policy", "near", "origin"),
    [
        ("auto", True, "previous_version"),
        ("auto", False, "first_requests"),
        ("auto", None, "first_requests"),
        ("inherit", False, "previous_version"),
        ("inherit", None, "previous_version"),
        ("own", True, "first_requests"),
    ],
)
def test_the_policy_and_the_kinship_decide(store: FakeStore, policy: Policy, near: bool | None, origin: str) -> None:
    made, _ = successor(store, policy, near)
    assert made is not None
    assert made.origin == origin
    assert made.decision is None


def test_what_is_unknown_is_waited_for_until_the_version_has_a_reference_of_its_own(store: FakeStore) -> None:
    fill(store, store.add_version("1", PROBES), 3)
    second = store.add_version("2", PROBES)
    fill(store, second, 1)
    assert ensure(store, second, 600, LATER) is None
    assert waiting(store, second, 600, LATER) == (
        250, "250 of 600 requests for a reference of its own; is it near version 1? unknown: 0 of 60 requests compared"
    )  # fmt: skip
    store.kinships[second.id, "0" * 64] = kin(np.random.default_rng(0), n=40)
    assert ensure(store, second, 600, LATER) is None
    assert "unknown: 40 of 60 requests compared" in waiting(store, second, 600, LATER)[1]
    store.kinships[second.id, "0" * 64] = kin(np.random.default_rng(0))
    made = ensure(store, second, 600, LATER)
    assert made is not None
    assert made.origin == "previous_version"


def test_a_kinship_with_another_file_than_the_one_replaced_says_nothing(store: FakeStore) -> None:
    fill(store, store.add_version("1", PROBES), 3)
    second = store.add_version("2", PROBES)
    store.kinships[second.id, "1" * 64] = kin(np.random.default_rng(0))
    assert ensure(store, second, 600, LATER) is None


def test_a_pinned_reference_stays_for_all_versions_until_it_is_changed(store: FakeStore) -> None:
    first, second, third, fourth = (store.add_version(name, PROBES) for name in "1234")
    fill(store, first, 5)
    chosen = from_windows(store, first, START, START + 2 * WINDOW)
    store.policies.append(ReferencePolicy("pinned", chosen.id))
    for version in (second, third):
        store.kinships[version.id, "0" * 64] = kin(np.random.default_rng(0), near=False)
        made = ensure(store, version, 600, LATER)
        assert made is not None
        assert (made.origin, made.source_version_id, made.n) == ("pinned", first.id, 500)
    store.policies.append(ReferencePolicy("own"))
    assert ensure(store, fourth, 600, LATER) is None
    store.policies.append(ReferencePolicy("pinned", chosen.id))
    other = store.add_version("5", [PROBES[0], probe("relu", 1, 9)])
    assert ensure(store, other, 600, LATER) is None
    assert waiting(store, other, 600, LATER)[1].endswith("of its own: the pinned reference 1 has other probes")


# On the real store, with the command.


def messages(version: str, first: int, last: int, scale: float = 1.0, seq: int = 0) -> list[Envelope]:
    rng = np.random.default_rng(first)
    bodies: list[Window | Deployment | Kinship] = []
    if seq == 0:
        bodies.append(Deployment(milliseconds(START + first * WINDOW), tuple(PROBES), (), "CPUExecutionProvider"))
    for minute in range(first, last):
        summaries = (summarise(rectified(rng, 400, 1, zeros=0, scale=scale)), summarise(rectified(rng, 400, 8)))
        layers = tuple(ProbeWindow(p, s) for p, s in zip(PROBES, summaries, strict=True))
        start = START + minute * WINDOW
        bodies.append(Window(milliseconds(start), milliseconds(start + WINDOW), layers))
    return [
        Envelope("pod", int(version), seq + i, "digits", version, version * 64, body) for i, body in enumerate(bodies)
    ]


def milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(reference.command, [*arguments, "--database-url", url])


SETTINGS = CheckSettings(reference_requests=4000, reference_windows=10)


@pytest.fixture
def shifted(database_url: str) -> Store:
    """Ten healthy windows, then twelve of another kind of picture, all checked; now is the real time."""
    database = Store(database_url)
    database.ingest("t", 0, None, 11, messages("1", 0, 10))
    database.ingest("t", 0, 11, 23, messages("1", 10, 22, scale=2.0, seq=100))
    for minute in range(10, 23):
        run_all(database, SETTINGS, START + minute * WINDOW + timedelta(seconds=10), {})
    return database


def now_is(monkeypatch: pytest.MonkeyPatch, at: datetime) -> None:
    monkeypatch.setattr(Store, "now", lambda _: at)


def test_accepting_the_present_ends_the_finding_and_keeps_who_and_why(
    shifted: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = shifted.model_version("digits", "1")
    assert version is not None
    (last,) = shifted.checks(version.id, START, 1)
    assert {f.alert for f in last.check.findings} == {"ReluscopeInputShift"}
    now_is(monkeypatch, START + 22 * WINDOW + timedelta(seconds=10))
    result = run(
        database_url, "accept", "--model", "digits", "--why", "new cameras, ticket 12", "--by", "ada",
        "--requests", "4000", "--effect", "0.5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Accepted: ReluscopeInputShift" in result.output
    made = shifted.reference(version.id)
    assert made is not None
    # The newest ten windows, and none from before the findings.
    assert (made.origin, made.start, made.end) == ("accepted", START + 12 * WINDOW, START + 22 * WINDOW)

    shifted.ingest("t", 0, 23, 26, messages("1", 22, 25, scale=2.0, seq=200))
    for minute in range(23, 26):
        (check,) = run_all(shifted, SETTINGS, START + minute * WINDOW + timedelta(seconds=10), {})
        assert (check.status, check.findings) == ("ok", ())
    with psycopg.connect(psycopg_url(database_url)) as connection:
        columns = "origin, made_by, why, accepts, active, replaced_at IS NULL"
        kept = connection.execute(f"SELECT {columns} FROM reference_history ORDER BY created_at".encode()).fetchall()
    assert kept == [
        ("first_requests", None, None, [], False, False),
        ("accepted", "ada", "new cameras, ticket 12", ["ReluscopeInputShift"], True, True),
    ]
    assert "ada" in run(database_url, "show", "--model", "digits").output


def test_windows_from_before_the_findings_are_not_accepted_with_them(
    shifted: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_is(monkeypatch, START + 22 * WINDOW + timedelta(seconds=10))
    arguments = ("accept", "--model", "digits", "--why", "x", "--windows", "15", "--effect", "0.5")
    result = run(database_url, *arguments)
    assert result.exit_code == 1
    found = result.output
    assert "of 15 windows since 2026-01-31T12:1" in found, found
    older = run(database_url, *arguments, "--since", "2026-01-31T12:00:00Z")
    assert older.exit_code == 0, older.output
    for missing in (["--why", "  "], []):
        refused = run(database_url, "accept", "--model", "digits", *missing)
        assert refused.exit_code == 2
        assert "--why" in refused.output


def test_the_policy_command_sets_shows_and_keeps_history(shifted: Store, database_url: str) -> None:
    assert run(database_url, "policy", "digits").output == "Policy of digits: auto\n"
    said = run(database_url, "policy", "digits", "own", "--why", "retrained weekly", "--by", "ada").output
    assert said.startswith("Policy of digits: own, by ada at 20")
    assert said.endswith(": retrained weekly\n")
    version = shifted.model_version("digits", "1")
    assert version is not None
    first = shifted.reference(version.id)
    assert first is not None
    assert run(database_url, "policy", "digits", "pinned", "--by", "bo").exit_code == 0
    assert shifted.reference_policy("digits").reference_id == first.id
    # A reference that a person makes is pinned instead.
    span = ("--from", "2026-01-31T12:12:00Z", "--to", "2026-01-31T12:22:00Z")
    made = run(database_url, "set", "--model", "digits", *span, "--effect", "0.5", "--by", "cy", "--why", "better")
    assert "Pinned reference 2 for the versions to come" in made.output
    shifted.ingest("t", 0, 23, 24, messages("2", 30, 30))
    second = shifted.model_version("digits", "2")
    assert second is not None
    adopted = ensure(shifted, second, 10, LATER)
    assert adopted is not None
    assert (adopted.origin, adopted.start) == ("pinned", START + 12 * WINDOW)
    for arguments, message in (
        (("pinned", "--reference", "99"), "there is no reference 99: nothing to pin"),
        (("own", "--reference", "1"), "--reference goes with the policy pinned only"),
        (("adopt",), "Invalid value"),
    ):
        assert message in run(database_url, "policy", "digits", *arguments).output
    with psycopg.connect(psycopg_url(database_url)) as connection:
        kept = connection.execute("SELECT policy, made_by, why, in_force FROM reference_policies ORDER BY made_at")
        assert kept.fetchall() == [
            ("own", "ada", "retrained weekly", False), ("pinned", "bo", "", False), ("pinned", "cy", "better", True),
        ]  # fmt: skip


def test_kinships_add_up_over_agents_and_redelivery_counts_once(database_url: str) -> None:
    store = Store(database_url)
    rng = np.random.default_rng(5)
    bodies = [Kinship(milliseconds(START), "1", "1" * 64, tuple(kin(rng, n=n).values())) for n in (30, 50)]
    sent = [Envelope(f"pod-{i}", 1, 1, "digits", "2", "2" * 64, body) for i, body in enumerate(bodies)]
    assert store.ingest("t", 0, None, 2, sent).applied == 2
    assert store.ingest("t", 0, 2, 4, sent).duplicates == 2
    version = store.model_version("digits", "2")
    assert version is not None
    (found,) = store.kinship(version.id, "1" * 64).values()
    assert found.n == 80
    np.testing.assert_allclose(found.product, sum(body.layers[0].product for body in bodies))
    assert store.kinship(version.id, "3" * 64) == {}
    # One row per pair of versions and layer, however much is measured.
    with psycopg.connect(psycopg_url(database_url)) as connection:
        assert connection.execute("SELECT count(*) FROM kinships").fetchone() == (1,)
    ones = np.ones(9)
    odd = LayerKinship("relu", 30, ones, ones, ones, ones, ones, ones)
    result = store.ingest("t", 0, 4, 5, [replace(sent[0], seq=9, body=replace(bodies[0], layers=(odd,)))])
    assert result.refused == (RefusedProbe("digits", "2", "relu", 9, 8),)
    assert store.kinship(version.id, "1" * 64)["relu"].n == 80
    store.close()


def test_the_tables_of_policies_and_turns_have_bounds(shifted: Store, database_url: str) -> None:
    """One due time per version; policies are one row for each command of a person."""
    with psycopg.connect(psycopg_url(database_url)) as connection:
        assert connection.execute("SELECT count(*) FROM check_turns").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM checks").fetchone() == (13,)
        assert connection.execute("SELECT count(*) FROM reference_policy_changes").fetchone() == (0,)
    assert shifted.now() > datetime(2026, 1, 1, tzinfo=UTC)
