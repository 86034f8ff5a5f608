"""How many channels each probe has: what it was first, it has to stay."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from agent.delivery.versions import Version
from agent.wire import Probe


@dataclass(slots=True)
class _Known:
    widths: dict[str, int] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


class Widths:
    """The widths of the probes of the model versions seen last.

    A probe whose width changes is of no use from then on: its channels are no channels but positions, say, of a
    sequence. Requests of the one width that came first would be a sample of nothing.
    """

    def __init__(self, most_versions: int = 64) -> None:
        self._most_versions = most_versions
        self._known: OrderedDict[Version, _Known] = OrderedDict()

    def fault(self, version: Version, probe: Probe, width: int) -> str | None:
        """Why values of so many channels cannot be taken in, for this and all later batches; None where they can."""
        known = self._known.setdefault(version, _Known())
        self._known.move_to_end(version)
        if len(self._known) > self._most_versions:
            self._known.popitem(last=False)
        if probe.name in known.faults:
            return known.faults[probe.name]
        before = known.widths.setdefault(probe.name, probe.channels or width)
        if before == width:
            return None
        said = "the model declares" if probe.channels else "before it had"
        known.faults[probe.name] = (
            f"it has {width} channels, {said} {before}; it is no longer observed, leave it out with "
            f"--probes '!{probe.name}'"
        )
        return known.faults[probe.name]
