"""The model versions loaded from the repository: follows what is served, refuses broken ones with a reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from agent.budget.duty import Duty
from agent.budget.shares import ModelKey
from agent.capture.calibration import Calibration
from agent.capture.choice import ChoiceError
from agent.capture.settings import CaptureSettings
from agent.capture.timing import Stopped
from agent.instrument import Instrumented, InstrumentError
from agent.intake.catalog import ModelMetadata
from agent.metrics import AgentMetrics
from agent.replay import NoMemory, ReplayError
from agent.serving.following import Following
from agent.serving.loading import Loader, Served, be_nice
from agent.serving.repository import MODEL_FILE, Entry, RepositoryError, scan

__all__ = ["Models", "Served", "be_nice"]

log = structlog.get_logger()
_DEFER_SECONDS = 30.0
"""Before a version that memory had no room for is tried again."""


class Models:
    """What is observed of the repository now. `served`, `version` and `models` answer from memory, from any thread."""

    def __init__(
        self,
        root: Path,
        metrics: AgentMetrics,
        on_deployment: Callable[[str, str, str, Instrumented, str], None],
        settings: CaptureSettings,
        *,
        on_refreshed: Callable[[Mapping[ModelKey, Served]], None] = lambda served: None,
        following: Following | None = None,
        duty: Duty | None = None,
    ) -> None:
        """``on_refreshed`` is called after every look at the repository, in the thread that watches it.

        ``following`` says which versions; without it the highest of each model. ``duty`` is the agent's: what timing a
        model takes is paid from it.
        """
        self._root = root
        self._metrics = metrics
        self._on_deployment = on_deployment
        self._on_refreshed = on_refreshed
        self._settings = settings
        self._following = following or Following(root)
        self._loader = Loader(metrics, settings, duty)
        # Replaced, never changed: others read them meanwhile.
        self._served: Mapping[ModelKey, Served] = {}
        self._defaults: Mapping[str, str | None] = {}
        self._refused: dict[ModelKey, Entry] = {}
        self._deferred: dict[ModelKey, tuple[Entry, float]] = {}
        self._seen: Mapping[ModelKey, Entry] | None = None
        self._unreadable: str | None = None
        self._warned_empty = False

    def served(self, model: str, version: str | None = None) -> Served | None:
        """A version that is observed; where none is named, the one that the server takes then."""
        version = self._defaults.get(model) if version is None else version
        return None if version is None else self._served.get((model, version))

    def version(self, model: str, version: str | None) -> ModelMetadata | None:
        """Metadata of a version, or of the default one where none is named; None where there is none.

        Not ready is a default version that the server serves and that is not loaded here yet.
        """
        version = self._defaults.get(model) if version is None else version
        if version is None:
            return None
        served = self._served.get((model, version))
        if served is None:
            return ModelMetadata(model, version, False, (), ()) if self._defaults.get(model) == version else None
        return served.metadata

    def models(self) -> Sequence[ModelMetadata]:
        by_number = sorted(self._served, key=lambda key: (key[0], int(key[1])))
        return [self._served[key].metadata for key in by_number if key in self._served]

    @property
    def several(self) -> bool:
        """Whether more than one version is observed now."""
        return len(self._served) > 1

    def known(self) -> Sequence[str]:
        """Names of the models in the repository, served or not."""
        return list(self._following.chosen) or self._names()

    def _names(self) -> Sequence[str]:
        """The same before the first look."""
        try:
            return sorted({path.parts[-3] for path in self._root.glob(f"*/*/{MODEL_FILE}")})
        except OSError:
            return []

    def refresh(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Loads what is new or changed, forgets what has gone; comes back soon once ``stopped()``.

        What appears or changes may be half copied: it is loaded once two looks in a row find its files the same, and
        at the first look of all, so that the start is not delayed; only what stays the same is called refused. A
        version that fails is tried again when a file of its folder changes, one that memory has no room for later.
        """
        try:
            found = scan(self._root, self._following.choose)
        except (RepositoryError, OSError) as error:
            if str(error) != self._unreadable:
                log.error("repository.unreadable", reason=str(error))
            self._unreadable = str(error)
            return
        self._unreadable = None
        if not self._following.chosen and not self._warned_empty:
            log.warning("repository.empty", repository=str(self._root), expected=f"<model>/<version>/{MODEL_FILE}")
        self._warned_empty = not self._following.chosen
        if self._settings.device.memory is not None:
            self._settings.device.memory.versions = len(found)
        before, self._seen = self._seen, found
        self._forget_unserved(found)
        for key, entry in found.items():
            if self._is_served(entry) or self._refused.get(key) == entry or self._waits(entry) or stopped():
                continue
            settled = before is not None and before.get(key) == entry
            if settled or before is None:
                self._load(entry, stopped, settled=settled)
        self._retire_replaced(found)
        self._on_refreshed(self._served)

    def watch(self, interval_seconds: float, stop: threading.Event) -> None:
        """Refreshes until stopped."""
        be_nice(self._settings.nice)
        while not stop.is_set():
            self.refresh(stop.is_set)
            stop.wait(interval_seconds)

    def _is_served(self, entry: Entry) -> bool:
        served = self._served.get(entry.key)
        return served is not None and served.entry.of(served.files) == entry.of(served.files)

    def _waits(self, entry: Entry) -> bool:
        """Whether memory had no room for it lately."""
        deferred = self._deferred.get(entry.key)
        return deferred is not None and deferred[0] == entry and time.monotonic() < deferred[1]

    def _forget_unserved(self, found: Mapping[ModelKey, Entry]) -> None:
        """Drops what is gone from the repository, and what the server says it does not serve, before others load."""
        for key in self._served.keys() - found.keys():
            chosen = self._following.chosen.get(key[0])
            if chosen is None or chosen.strict or not chosen.versions:
                self._drop(key, "model.removed" if chosen is None else "model.retired")
        for known in (self._refused, self._deferred):
            for key in known.keys() - found.keys():
                del known[key]
        self._set_defaults()

    def _retire_replaced(self, found: Mapping[ModelKey, Entry]) -> None:
        """Drops versions that are not wanted any more, once those that are have been loaded or refused."""
        for key in self._served.keys() - found.keys():
            wanted = [other for other in found if other[0] == key[0]]
            pending = [other for other in wanted if other not in self._served and other not in self._refused]
            if not pending and any(other in self._served for other in wanted):
                self._drop(key, "model.retired")
        self._set_defaults()

    def _drop(self, key: ModelKey, event: str) -> None:
        served = self._served[key]
        self._served = {other: item for other, item in self._served.items() if other != key}
        _retire(served)
        log.info(event, model=key[0], version=key[1])

    def _set_defaults(self) -> None:
        defaults: dict[str, str | None] = {}
        for model, version in sorted(self._served, key=lambda key: int(key[1])):
            defaults[model] = version  # the highest
        for model, chosen in self._following.chosen.items():
            if chosen.strict:
                defaults[model] = chosen.default
        self._defaults = defaults

    def _load(self, entry: Entry, stopped: Callable[[], bool], *, settled: bool) -> None:
        """Makes the version one that is observed. Until it is ready, the former one is."""
        try:
            served, calibration = self._loader.load(entry, stopped)
        except Stopped:
            return
        except NoMemory as error:
            self._defer(entry, error, stopped, settled=settled)
            return
        except Exception as error:  # one model, whatever is wrong with it, may not keep the others from being followed
            if not settled:
                return  # it may be half copied; the next look tries again
            known = isinstance(error, (InstrumentError, ChoiceError, ReplayError, OSError))
            self._refused[entry.key] = entry
            self._metrics.rejected_total.labels(entry.model, "model_unusable").inc()
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            log.error("model.refused", model=entry.model, version=entry.version, reason=reason, exc_info=not known)
            return
        self._swap(served, calibration)
        self._loader.say(served, calibration)

    def _defer(self, entry: Entry, error: NoMemory, stopped: Callable[[], bool], *, settled: bool) -> None:
        """Makes room by dropping a version that this one replaces, if there is one; else it is tried again later."""
        replaced = [key for key in self._served if key[0] == entry.model and key not in (self._seen or {})]
        if replaced:
            self._drop(replaced[0], "model.retired")
            self._load(entry, stopped, settled=settled)
            return
        self._deferred[entry.key] = entry, time.monotonic() + _DEFER_SECONDS
        log.warning(
            "model.deferred",
            model=entry.model,
            version=entry.version,
            reason=str(error),
            retry_seconds=_DEFER_SECONDS,
        )

    def _swap(self, served: Served, calibration: Calibration) -> None:
        entry = served.entry
        before = self._served.get(entry.key)
        # A re-written file with the same content is the same deployment.
        if before is None or before.digest != served.digest:
            self._on_deployment(entry.model, entry.version, served.digest, served.instrumented, served.engine.provider)
        self._served = {**self._served, entry.key: served}
        if before is not None:
            _retire(before)
        self._refused.pop(entry.key, None)
        self._deferred.pop(entry.key, None)
        self._metrics.start_model(entry.model)
        served.gauges.show(served.engine.provider, calibration)


def _retire(served: Served) -> None:
    """Takes a version's series and sessions away, for others may hold on to the rest of it for a while."""
    served.gauges.forget()
    served.engine.close()
