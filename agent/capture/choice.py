"""Which probes the user wants: globs on their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from agent.wire import NotProbed, Probe

_EXCLUDES = "!"


class ChoiceError(ValueError):
    """A choice that leaves nothing to observe."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The probes that are wanted, and what became of the others."""

    names: frozenset[str]
    left_out: tuple[NotProbed, ...]
    unmatched: tuple[str, ...]
    """Globs that match no probe of this model, as they were given."""


def parse_globs(values: Iterable[str]) -> tuple[str, ...]:
    """Globs from an option that may be repeated, each time with a list parted by commas.

    >>> parse_globs(["layer1*, layer2*", "!*relu1"])
    ('layer1*', 'layer2*', '!*relu1')
    """
    parts = (part.strip() for value in values for part in value.split(","))
    return tuple(part for part in parts if part.removeprefix(_EXCLUDES))


def choose(probes: Sequence[Probe], globs: Sequence[str]) -> Choice:
    """The probes that some glob names and none excludes; all but the excluded where every glob excludes.

    Globs are fnmatch's and mind the case; ``*`` matches ``/`` too. The model's inputs and outputs are wanted unless a
    glob excludes them: without them a finding cannot be told from a change of the traffic. Raises ChoiceError where
    nothing is left.
    """
    wanted = [glob for glob in globs if not glob.startswith(_EXCLUDES)]
    unwanted = [glob.removeprefix(_EXCLUDES) for glob in globs if glob.startswith(_EXCLUDES)]

    def keeps(probe: Probe) -> bool:
        included = not wanted or probe.kind != "activation" or _any(probe.name, wanted)
        return included and not _any(probe.name, unwanted)

    kept = [probe for probe in probes if keeps(probe)]
    if not kept:
        raise ChoiceError(f"--probes {','.join(globs)} leaves nothing to observe; there are {listing(probes)}")
    names = frozenset(probe.name for probe in kept)
    return Choice(
        names,
        tuple(NotProbed(probe.name, probe.op, "left out by --probes") for probe in probes if probe.name not in names),
        tuple(
            glob for glob in globs if not any(fnmatchcase(probe.name, glob.removeprefix(_EXCLUDES)) for probe in probes)
        ),
    )


def listing(probes: Sequence[Probe]) -> str:
    """The probes' names, for messages."""
    return ", ".join(probe.name for probe in probes)


def _any(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
