"""The play: three acts, each with what must and what must not be found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import onnx

from deploy.demo import cnn
from deploy.demo.stage import MODEL, WINDOW_SECONDS, Stage
from deploy.demo.traffic import Player, healthy_camera, shifted_camera
from deploy.demo.view import Story, View
from deploy.demo.watch import Found, Seen, Watcher

SILENT_WINDOWS = 4
"""Act 1 ends after so many windows were checked against the reference without a finding."""
MOST_WINDOWS = 6
"""Acts 2 and 3 give up after so many windows."""
REFERENCE_TIMEOUT = 60.0
SETTLE_SECONDS = 2.0
"""How long requests of the broken camera may still be under way after its repair."""
ROUTING_TIMEOUT = 25.0
"""The shipped rules are evaluated every 15 s."""
POLL_SECONDS = 0.4


@dataclass(slots=True)
class Outcome:
    """How an act ended; it passed when there are no problems."""

    act: int
    expected: str
    problems: list[str] = field(default_factory=list)
    found: str = ""
    windows: int | None = None
    """Silent windows in act 1; in the others, how many windows had ended when the finding came."""
    checks: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Director:
    """Leads through the acts; `now` gives the wall clock that windows are cut by."""

    stage: Stage
    player: Player
    watcher: Watcher
    story: Story
    view: View
    routing: bool = False
    """Whether Prometheus and Alertmanager run too."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _told: set[tuple[object, ...]] = field(default_factory=set)

    def healthy(self) -> Outcome:
        """Act 1: a reference is made from the first requests, then every check must be silent."""
        outcome = Outcome(1, "silence")
        self._open("Act 1: healthy traffic", "pictures as the model knows them; every check must stay silent")
        begun = time.monotonic()
        self.player.start()
        compared: set[datetime] = set()

        def silent(checks: list[Seen]) -> bool:
            for check in checks:
                if check.status in ("ok", "findings") and check.window_end is not None:
                    compared.add(check.window_end)
                    outcome.checks += 1
                outcome.problems.extend(f"act 1 must be silent, but: {found.summary}" for found in check.findings)
            return bool(outcome.problems) or len(compared) >= SILENT_WINDOWS

        if not self._until(silent, REFERENCE_TIMEOUT):
            outcome.problems.append(
                f"only {len(compared)} windows were checked against a reference within {REFERENCE_TIMEOUT:g} s"
            )
        outcome.windows = len(compared)
        return self._close(outcome, begun, f"{len(compared)} windows checked, no finding")

    def shifted(self) -> Outcome:
        """Act 2: the camera changes; the finding must name the inputs."""
        outcome = Outcome(2, "input_shift")
        self._open("Act 2: a shifted camera", "the lens is out of focus and the light is half; the model is the same")
        self._next_window()
        self.player.camera = shifted_camera

        def right(findings: tuple[Found, ...]) -> Found | None:
            return next((f for f in findings if f.cause == "input_shift" and f.origin and f.kind == "input"), None)

        return self._paged(self._search(outcome, "1", right), "ReluscopeInputShift")

    def dead(self, model: onnx.ModelProto, channels: tuple[int, ...]) -> Outcome:
        """Act 3: healthy pictures again, but version 2 has dead `channels` in conv2."""
        outcome = Outcome(3, "dead_neurons")
        self._open("Act 3: a bad deploy", "the camera is repaired; version 2 goes live with a broken export of conv2")
        self._next_window()
        self.player.camera = healthy_camera
        # Late requests of the broken camera must not be replayed by version 2.
        self._until(lambda _: False, SETTLE_SECONDS)
        path = cnn.deploy(model, self.stage.repository, MODEL, 2)
        self.story.say("step", f"deployed {path.relative_to(self.stage.repository)}")
        self.watcher.version = "2"

        def right(findings: tuple[Found, ...]) -> Found | None:
            if any(found.cause == "input_shift" for found in findings):
                return None
            return next((f for f in findings if self._is_dead_conv2(f) and set(channels) <= set(f.channels)), None)

        return self._paged(self._search(outcome, "2", right), "ReluscopeDeadNeurons")

    def _paged(self, outcome: Outcome, alert: str) -> Outcome:
        """Where Prometheus and Alertmanager run, give them the time to send the alert; no matter if they do not."""
        if self.routing and not outcome.problems:
            self.story.say("step", f"waiting for Prometheus to evaluate its rules and Alertmanager to send {alert}")
            if self._until(lambda _: alert in self.watcher.routed_alerts(), ROUTING_TIMEOUT):
                self.story.say("alert", f"{alert} came through Alertmanager and is kept in Postgres")
                self.view.show(self.story)
        return outcome

    def _next_window(self) -> None:
        """Play on until a new window begins, so that what follows is not mixed with what was."""
        into = self.now().timestamp() % WINDOW_SECONDS
        self._until(lambda _: False, WINDOW_SECONDS - into)

    @staticmethod
    def _is_dead_conv2(found: Found) -> bool:
        return (found.layer, found.test, found.cause, found.origin) == ("conv2_relu", "dead", "dead_neurons", True)

    def _search(self, outcome: Outcome, version: str, right: Callable[[tuple[Found, ...]], Found | None]) -> Outcome:
        """Wait for the first check of `version` with findings on windows that end from now on, and judge it."""
        begun, start = time.monotonic(), self.now()
        verdict: list[tuple[datetime, tuple[Found, ...]]] = []

        def judged(checks: list[Seen]) -> bool:
            for check in checks:
                if check.version == version and check.window_end is not None and check.window_end > start:
                    outcome.checks += 1
                    if check.findings:
                        verdict.append((check.window_end, check.findings))
            return bool(verdict)

        # The last window's end, its grace, the way through the broker, and one interval of checks.
        if not self._until(judged, (MOST_WINDOWS + 2) * WINDOW_SECONDS):
            outcome.problems.append(f"nothing was found within {MOST_WINDOWS} windows, {outcome.expected} was expected")
            return self._close(outcome, begun, "")
        window_end, findings = verdict[0]
        found = right(findings)
        outcome.windows = math.ceil((window_end - start).total_seconds() / WINDOW_SECONDS)
        if found is None:
            seen = "; ".join(f"{f.layer}: {f.test}, {f.cause}{', origin' * f.origin}" for f in findings)
            outcome.problems.append(f"{outcome.expected} was expected, the first findings were: {seen}")
            return self._close(outcome, begun, "")
        outcome.found = found.summary
        if outcome.windows > MOST_WINDOWS:
            outcome.problems.append(f"found only after {outcome.windows} windows")
        return self._close(outcome, begun, f"{outcome.expected} found at {found.layer} in window {outcome.windows}")

    def _until(self, done: Callable[[list[Seen]], bool], timeout: float) -> bool:
        """Poll, tell and show until `done` says so of the new checks; whether it did in time."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self.stage.check_alive()
            checks = self.watcher.poll(self.story)
            self.story.pipeline["requests/s"] = f"{self.player.rate():.0f}"
            self.story.pipeline["answer p99"] = f"{self.player.latency_ms(0.99):.1f} ms"
            for check in checks:
                self._tell(check)
            self.view.show(self.story)
            if done(checks):
                return True
            time.sleep(min(POLL_SECONDS, left))
        return False

    def _tell(self, check: Seen) -> None:
        """One line per version and window; each finding and each alert once."""
        about = f"{check.n} requests to {check.window_end:%H:%M:%S}" if check.window_end else check.note
        if (line := (check.version, check.status, about)) not in self._told:
            self._told.add(line)
            self.story.say("check", f"check of version {check.version}: {check.status.replace('_', ' ')}, {about}")
        for found in check.findings:
            if (key := (check.version, found.layer, found.test)) not in self._told:
                self._told.add(key)
                mark = "origin, " if found.origin else ""
                self.story.say("finding", f"finding ({mark}cause {found.cause}): {found.summary}")
        for alert, severity in sorted({(found.alert, found.severity) for found in check.findings}):
            if (once := (check.version, alert)) not in self._told:
                self._told.add(once)
                link = self.watcher.runbook_url(alert)
                self.story.say("alert", f"alert {alert} ({severity}), {MODEL} version {check.version}: {link}")

    def _open(self, title: str, text: str) -> None:
        self.story.act = title
        self.story.say("act", f"{title}: {text}")
        self.view.show(self.story)

    def _close(self, outcome: Outcome, begun: float, good: str) -> Outcome:
        outcome.seconds = round(time.monotonic() - begun, 1)
        for problem in outcome.problems:
            self.story.say("bad", f"act {outcome.act} failed: {problem}")
        if not outcome.problems:
            self.story.say("good", f"act {outcome.act} as expected after {outcome.seconds:.0f} s: {good}")
        self.view.show(self.story)
        return outcome
