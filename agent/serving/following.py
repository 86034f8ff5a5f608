"""Follows what is served: puts together the server's answer, the configuration and the policies in the repository."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog

from agent.serving.config_pbtxt import CONFIG_FILE, ConfigError, read_policy
from agent.serving.versions import Chosen, ServerAnswer, VersionPolicy, choose

log = structlog.get_logger()
_Stamp = tuple[int, int]


class Following:
    """Which versions of the models in a repository are observed. Belongs to the thread that watches it."""

    def __init__(
        self,
        root: Path,
        most: int = 2,
        configured: Mapping[str, tuple[str, ...]] | None = None,
        answer: Callable[[], ServerAnswer | None] = lambda: None,
    ) -> None:
        """``most`` versions of a model at a time; ``configured`` by model; ``answer`` is the server's last one."""
        self._root = root
        self._most = most
        self._configured = configured or {}
        self._answer = answer
        self._policies: dict[str, tuple[_Stamp, VersionPolicy | None]] = {}
        self._said: dict[str, tuple[object, ...]] = {}
        self.chosen: dict[str, Chosen] = {}
        """By model: of all that the last look found."""

    def look(self, present: Mapping[str, Collection[str]]) -> None:
        """Chooses anew: versions by model, as they are in the repository now."""
        answer = self._answer()
        chosen = {}
        for model, versions in present.items():
            policy = self._policy(model)
            chosen[model] = choose(
                model, versions, self._most, answer=answer, configured=self._configured, policy=policy
            )
            self._say(model, chosen[model])
        self.chosen = chosen
        for known in (self._policies, self._said):
            for model in known.keys() - present.keys():
                del known[model]

    def choose(self, present: Mapping[str, Collection[str]]) -> Mapping[str, Collection[str]]:
        """As `look`; the versions to observe, by model."""
        self.look(present)
        return {model: chosen.versions for model, chosen in self.chosen.items()}

    def _policy(self, model: str) -> VersionPolicy | None:
        """The policy of a model's config.pbtxt, read when it changes; the last good one where it cannot be read."""
        path = self._root / model / CONFIG_FILE
        before = self._policies.get(model)
        try:
            status = path.stat()
        except OSError:
            self._policies.pop(model, None)
            return None
        stamp = (status.st_mtime_ns, status.st_size)
        if before is not None and before[0] == stamp:
            return before[1]
        policy = before[1] if before is not None else None
        try:
            policy = read_policy(path)
        except (ConfigError, OSError) as error:
            log.warning("policy.unreadable", model=model, reason=str(error), kept=policy is not None)
        self._policies[model] = stamp, policy
        return policy

    def _say(self, model: str, chosen: Chosen) -> None:
        """Logs, once for each change, what is followed and why, and what of it cannot be observed."""
        said = (chosen.versions, chosen.source, chosen.missing, chosen.beyond)
        if self._said.get(model) == said:
            return
        before = self._said.get(model, ((), "highest"))
        self._said[model] = said
        if (before[1], chosen.source) != ("highest", "highest"):
            log.info("versions.followed", model=model, versions=list(chosen.versions), source=chosen.source)
        if chosen.missing:
            log.warning("versions.missing", model=model, versions=list(chosen.missing), source=chosen.source)
        if chosen.beyond:
            hint = "raise --max-versions to observe these too"
            log.warning("versions.left_out", model=model, versions=list(chosen.beyond), hint=hint)
