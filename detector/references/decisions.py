"""What a person decides about references: that the present is normal, and where next versions get theirs from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from detector.domain.types import Decision, ModelVersion, Policy, Reference, ReferencePolicy, StoredCheck
from detector.references.making import NoReference, ReferenceStore, from_newest
from detector.references.size import Need

RESTS_ON_REFERENCE = ("drift", "dead", "explosion", "sparsity")
"""Tests that a new reference ends; what paired replay finds, and odd pods, it does not."""
_MOST_CHECKS = 500
_LONGEST = timedelta(days=7)


class DecisionStore(ReferenceStore, Protocol):
    """The part of the store that decisions need."""

    def checks(self, version_id: int, since: datetime, limit: int) -> list[StoredCheck]: ...
    def set_reference_policy(self, model: str, chosen: ReferencePolicy) -> None: ...


def reason(why: str) -> str:
    """What a person gives as a reason; raises ValueError where it is blank."""
    if not why.strip():
        raise ValueError("is empty: say why this is normal, for whoever reads the postmortem")
    return why


def accept(
    store: DecisionStore,
    version: ModelVersion,
    requests: int,
    windows: int,
    since: datetime | None,
    now: datetime,
    need: Need,
    by: str,
    why: str,
) -> tuple[Reference, tuple[str, ...]]:
    """Makes the newest windows the reference, and says which alerts do not end by that; raises NoReference.

    Without ``since`` no window counts that is older than the findings of the newest check: what was before them is what
    is no longer normal.
    """
    recent = store.checks(version.id, now - _LONGEST, _MOST_CHECKS)
    told = [one.check.findings for one in recent[:1]]
    ended = tuple(sorted({f.alert for found in told for f in found if f.test in RESTS_ON_REFERENCE}))
    left = tuple(sorted({f.alert for found in told for f in found if f.test not in RESTS_ON_REFERENCE}))
    begin = since or _findings_since(recent) or version.first_seen
    decision = Decision(by, why, ended)
    made = from_newest(store, version, requests, windows, begin, now, decision, need)
    repin(store, version, made)
    return made, left


def set_policy(
    store: DecisionStore, version: ModelVersion, policy: Policy, reference_id: int | None, by: str, why: str
) -> ReferencePolicy:
    """Puts a policy into force for the model; raises NoReference where there is no reference to pin.

    What is pinned is the reference of that id, or else the one that ``version`` has now.
    """
    if policy == "pinned":
        found = store.reference(version.id) if reference_id is None else store.reference_with_id(reference_id)
        if found is None:
            missing = f"{version.model}@{version.version} has no reference yet" if reference_id is None else (
                f"there is no reference {reference_id}"
            )  # fmt: skip
            raise NoReference(f"{missing}: nothing to pin")
        reference_id = found.id
    elif reference_id is not None:
        raise NoReference(f"--reference goes with the policy pinned only, not with {policy}")
    chosen = ReferencePolicy(policy, reference_id, by, why)
    store.set_reference_policy(version.model, chosen)
    return chosen


def repin(store: DecisionStore, version: ModelVersion, made: Reference) -> bool:
    """Where the model's reference is pinned, the one that a person has made now is pinned instead; whether it was."""
    if store.reference_policy(version.model).policy != "pinned" or made.decision is None:
        return False
    chosen = ReferencePolicy("pinned", made.id, made.decision.by, made.decision.why)
    store.set_reference_policy(version.model, chosen)
    return True


def _findings_since(newest_first: Sequence[StoredCheck]) -> datetime | None:
    """Where the windows begin of the oldest check in the run of checks with findings that lasts until now."""
    begin = None
    for one in newest_first:
        if not any(finding.test in RESTS_ON_REFERENCE for finding in one.check.findings):
            return begin
        begin = one.check.window_start or begin
    return begin
