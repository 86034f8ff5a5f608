"""The pairings of one agent: made when they are first needed, given up when their version is gone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass

import structlog

from agent.budget.shares import ModelKey
from agent.paired.baselines import Baseline
from agent.paired.errors import PairedError
from agent.paired.pairing import Pairing
from agent.paired.settings import PairedSettings
from agent.serving.models import Served
from agent.wire import BaselineKind

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Made:
    """A pairing and what it was made of; None where that failed."""

    of: tuple[str, str, Baseline | None]
    pairing: Pairing | None


class Pairings:
    """Belongs to one thread. Where memory is short, what was not used for longest makes room."""

    def __init__(self, settings: PairedSettings) -> None:
        self._settings = settings
        self._made: OrderedDict[tuple[ModelKey, BaselineKind], _Made] = OrderedDict()

    def of(self, served: Served, kind: BaselineKind, baseline: Baseline | None) -> Pairing | None:
        """The pairing, made when it is first needed; None where it cannot be made of these files."""
        key, made_of = (served.entry.key, kind), (served.entry.version, served.digest, baseline)
        made = self._made.get(key)
        if made is not None and made.of == made_of:
            self._made.move_to_end(key)
            return made.pairing
        self._made.pop(key, None)  # first, so that old and new are not in memory together
        try:
            pairing = Pairing(served, baseline, self._settings, make_room=lambda: self._close_oldest(key))
        except PairedError as error:
            log.error("paired.unusable", model=served.entry.model, version=made_of[0], kind=kind, reason=str(error))
            self._made[key] = _Made(made_of, None)
            return None
        self._made[key] = _Made(made_of, pairing)
        log.info(
            "paired.loaded",
            model=served.entry.model,
            version=served.entry.version,
            kind=kind,
            baseline=pairing.template.baseline,
            pairs=len(pairing.pairs),
            unmatched=len(pairing.unmatched),
        )
        return pairing

    def keep(self, versions: Container[ModelKey]) -> None:
        """Gives up the pairings of all other versions."""
        for key in [key for key in self._made if key[0] not in versions]:
            del self._made[key]

    def _close_oldest(self, but: tuple[ModelKey, BaselineKind]) -> bool:
        """Closes the sessions of the pairing that was not used for longest, to have their memory; False if none is."""
        others = (made.pairing for key, made in self._made.items() if key != but)
        return any(pairing.close() for pairing in others if pairing is not None)
