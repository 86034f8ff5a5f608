"""Which versions of a model are served: what the server says, else the configuration, else the repository. Pure.

the server's answer     where it was asked and knows the model; it is the authority: nothing else is observed
--versions MODEL=1,2    where the server cannot be asked
config.pbtxt            Triton's version_policy: latest, all or specific
the highest             as Triton does without a policy
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Source = Literal["server", "configuration", "policy", "highest"]


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Triton's version policy."""

    kind: Literal["latest", "all", "specific"]
    latest: int = 1
    """Of "latest": how many of the highest."""
    specific: tuple[str, ...] = ()

    def choose(self, present: Collection[str]) -> tuple[str, ...]:
        """Of the versions that are there, those that the policy serves, ascending."""
        rising = ascending(present)
        if self.kind == "latest":
            return rising[-self.latest :]
        return tuple(version for version in rising if self.kind == "all" or version in self.specific)


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """What a server says of its models."""

    ready: Mapping[str, tuple[str, ...]]
    """Versions that are ready, by model; none for a model that is not served now. What it does not know is absent."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The versions of a model to observe, of those that are there."""

    versions: tuple[str, ...]
    """Ascending."""
    default: str | None
    """Where requests go that name no version; None to leave it to what is loaded."""
    source: Source
    missing: tuple[str, ...] = ()
    """Wanted, but not in the repository."""
    beyond: tuple[str, ...] = ()
    """More than may be observed at a time: the lowest are left out."""

    @property
    def strict(self) -> bool:
        """Whether nothing else is served, even while these are not loaded yet."""
        return self.source == "server"


def choose(
    model: str,
    present: Collection[str],
    most: int,
    *,
    answer: ServerAnswer | None = None,
    configured: Mapping[str, tuple[str, ...]] | None = None,
    policy: VersionPolicy | None = None,
) -> Chosen:
    """The versions of a model to observe.

    Args:
        model: its name.
        present: versions in the repository.
        most: how many may be observed at a time.
        answer: the server's last answer.
        configured: versions by model.
        policy: of the model's config.pbtxt.
    """
    default = None
    if answer is not None and model in answer.ready:
        source: Source = "server"
        wanted = ascending(answer.ready[model])
        default = wanted[-1] if wanted else None
    elif configured is not None and model in configured:
        source, wanted = "configuration", ascending(configured[model])
    elif policy is not None:
        source = "policy"
        wanted = ascending({*policy.choose(present), *policy.specific})
    else:
        source, wanted = "highest", ascending(present)[-1:]
    there = tuple(version for version in wanted if version in present)
    missing = tuple(version for version in wanted if version not in present)
    return Chosen(there[-most:], default, source, missing, there[:-most])


def ascending(versions: Collection[str]) -> tuple[str, ...]:
    """Versions in numerical order."""
    return tuple(sorted(set(versions), key=int))
