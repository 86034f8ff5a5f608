"""What a model version's windows are compared with: where its reference comes from, unless a person made one."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from detector.domain.types import Decision, ModelVersion, Reference, ReferencePolicy
from detector.references.making import NoReference, ReferenceStore, adopt, from_first_requests, same_probes, seen
from detector.statistics.kinship import Likeness, likeness


def ensure(
    store: ReferenceStore, version: ModelVersion, requests: int, until: datetime, windows: int = 1
) -> Reference | None:
    """The version's reference, made if there is none yet; None where it cannot be made yet.

    Where it comes from is the model's policy. Under "auto" a version that replaces another with the same probes, and is
    near it (`detector.statistics.kinship`), is compared with that one's reference, so that a bad deployment is seen at
    once. Any other waits for its own first ``requests`` requests, in at least ``windows`` windows that closed by
    ``until``; so does one of which it is unknown until then.
    """
    existing = store.reference(version.id)
    if existing is not None:
        return existing
    chosen = store.reference_policy(version.model)
    with suppress(NoReference):
        if chosen.policy == "pinned":
            return from_pinned(store, version, chosen)
        if chosen.policy == "inherit" or (chosen.policy == "auto" and near_former(store, version)):
            return from_previous(store, version, requests, until, windows)
    with suppress(NoReference):
        return from_first_requests(store, version, requests, until, windows=windows)
    return None


def waiting(
    store: ReferenceStore, version: ModelVersion, requests: int, until: datetime, windows: int = 1
) -> tuple[int, str]:
    """Of a version that `ensure` gave no reference: its requests so far, and what it waits for."""
    spans = store.spans(version.id, version.first_seen, until)
    n, said = sum(span.n for span in spans), f"{seen(spans, requests, windows)} for a reference"
    chosen = store.reference_policy(version.model)
    if chosen.policy == "pinned":
        return n, f"{said} of its own: the pinned reference {chosen.reference_id} has other probes"
    kin = former_kinship(store, version) if chosen.policy == "auto" else None
    return n, said if kin is None else f"{said} of its own; is it near version {kin[0].version}? {kin[1]}"


def near_former(store: ReferenceStore, version: ModelVersion) -> bool:
    """Whether the version is known to be near the one that it replaced."""
    kin = former_kinship(store, version)
    return kin is not None and kin[1].verdict == "near"


def former_kinship(store: ReferenceStore, version: ModelVersion) -> tuple[ModelVersion, Likeness] | None:
    """The version that was replaced, and how near it is; None where there is none with the same probes."""
    previous = store.previous_version(version.id)
    if previous is None or not same_probes(store.probes(previous.id), store.probes(version.id)):
        return None
    return previous, likeness(store.kinship(version.id, previous.digest).values())


def from_previous(
    store: ReferenceStore,
    version: ModelVersion,
    requests: int,
    until: datetime,
    windows: int = 1,
    decision: Decision | None = None,
) -> Reference:
    """Adopts the reference of the version before; raises NoReference where there is none or the probes differ."""
    previous = store.previous_version(version.id)
    if previous is None:
        raise NoReference(f"{version.model}@{version.version} has no version before it")
    if not same_probes(store.probes(previous.id), store.probes(version.id)):
        raise NoReference(f"the probes of {previous.version} and {version.version} differ")
    source = ensure(store, previous, requests, until, windows)
    if source is None:
        raise NoReference(f"version {previous.version} has no reference")
    return adopt(store, version, source, "previous_version", decision)


def from_pinned(store: ReferenceStore, version: ModelVersion, chosen: ReferencePolicy) -> Reference:
    """Adopts the reference that a person pinned; raises NoReference where its probes are not the version's."""
    pinned = None if chosen.reference_id is None else store.reference_with_id(chosen.reference_id)
    if pinned is None:
        raise NoReference(f"the pinned reference {chosen.reference_id} is not there")
    if not same_probes(store.probes(pinned.version_id), store.probes(version.id)):
        raise NoReference(f"the pinned reference {pinned.id} has other probes than {version.model}@{version.version}")
    return adopt(store, version, pinned, "pinned")
