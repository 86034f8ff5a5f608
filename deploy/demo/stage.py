"""The servers and the product's own processes that the demo plays with, up on entry and gone on exit."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.broker import Broker, embedded_broker
from deploy.local.ports import free_port
from deploy.local.postgres import postgres, psql_command
from deploy.local.process import Process, ServerError, http_ok, running
from deploy.local.prometheus import alertmanager, program, prometheus

MODEL = "digits"
WINDOW_SECONDS = 5
CHECK_SECONDS = 3
GRACE_SECONDS = 2
SAMPLE_RATE = 0.5
REFERENCE_REQUESTS = 800


@dataclass(slots=True)
class Stage:
    """Where everything is. `processes` are the ones whose death ends the demo."""

    directory: Path
    repository: Path
    database_url: str
    broker: Broker
    agent_url: str
    detector_url: str
    prometheus_url: str | None = None
    alertmanager_url: str | None = None
    processes: list[Process] = field(default_factory=list)

    def check_alive(self) -> None:
        """Raise ServerError when the agent or the detector has exited."""
        for process in self.processes:
            if process.returncode is not None:
                raise ServerError(f"{process.name} exited with status {process.returncode}:\n{process.tail()}")

    def addresses(self) -> dict[str, str]:
        """What a person would want to open, and how."""
        known = {
            "agent": f"{self.agent_url}/metrics",
            "detector": f"{self.detector_url}/metrics",
            "findings": f"{self.detector_url}/api/v1/findings",
            "runbooks": f"{self.detector_url}/runbooks",
            "postgres": psql_command(self.database_url),
            "broker": self.broker.bootstrap,
            "models": str(self.repository),
            "prometheus": self.prometheus_url or "",
            "alertmanager": self.alertmanager_url or "",
        }
        return {name: address for name, address in known.items() if address}


def reluscope(*arguments: str) -> list[str]:
    """The product's command line, of this interpreter's environment."""
    script = Path(sysconfig.get_path("scripts")) / "reluscope"
    if not script.exists():
        raise ServerError(f"{script} is missing: install the product first (pip install -e '.[agent,detector,demo]')")
    return [str(script), *arguments]


def call(*arguments: str, timeout: float = 60) -> str:
    """Run `reluscope` to its end; raise ServerError, with what it said, when it fails."""
    done = subprocess.run(reluscope(*arguments), capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise ServerError(f"reluscope {arguments[0]} exited with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def stage(directory: Path) -> Iterator[Stage]:
    """Postgres, a broker, a migrated schema, the agent and the detector; the model repository must have a model."""
    repository, logs = directory / "models", directory / "logs"
    with ExitStack() as stack:
        database_url = stack.enter_context(postgres(directory / "postgres"))
        broker = stack.enter_context(embedded_broker())
        call("migrate", "--database-url", database_url)
        agent_port, detector_port = free_port(), free_port()
        built = Stage(
            directory,
            repository,
            database_url,
            broker,
            f"http://127.0.0.1:{agent_port}",
            f"http://127.0.0.1:{detector_port}",
        )
        detector = running(
            "detector",
            reluscope("detector", *_detector_options(built), "--port", str(detector_port)),
            logs / "detector.log",
            ready=lambda: http_ok(f"{built.detector_url}/readyz"),
        )
        agent = running(
            "agent",
            reluscope("agent", *_agent_options(built), "--port", str(agent_port)),
            logs / "agent.log",
            ready=lambda: http_ok(f"{built.agent_url}/v2/models/{MODEL}/ready"),
        )
        built.processes = [stack.enter_context(detector), stack.enter_context(agent)]
        yield built


def _agent_options(stage: Stage) -> list[str]:
    return [
        *("--repository", str(stage.repository)),
        *stage.broker.options(),
        *("--state-dir", str(stage.directory / "agent")),
        *("--agent-id", "demo-pod-0"),
        *("--sample-rate", str(SAMPLE_RATE)),
        *("--window-seconds", str(WINDOW_SECONDS)),
    ]


def _detector_options(stage: Stage) -> list[str]:
    return [
        *("--database-url", stage.database_url),
        *stage.broker.options(),
        *("--check-interval", str(CHECK_SECONDS)),
        *("--reference-requests", str(REFERENCE_REQUESTS)),
        *("--reference-windows", "3"),  # of a demo: its requests are independent
        *("--grace-seconds", str(GRACE_SECONDS)),
    ]


@contextmanager
def alerting(stage: Stage) -> Iterator[bool]:
    """Prometheus with the shipped rules and Alertmanager with the detector's webhook, where they are installed.

    Yields whether they run; fills in the stage's addresses.
    """
    if program("prometheus") is None or program("alertmanager") is None:
        yield False
        return
    rules = stage.directory / "reluscope.rules.yml"
    rules.write_text(call("rules", "--detector-url", stage.detector_url))
    targets = {
        "reluscope-agent": [stage.agent_url.removeprefix("http://")],
        "reluscope-detector": [stage.detector_url.removeprefix("http://")],
    }
    with ExitStack() as stack:
        stage.alertmanager_url = stack.enter_context(
            alertmanager(stage.directory / "alertmanager", f"{stage.detector_url}/api/v1/alerts")
        )
        stage.prometheus_url = stack.enter_context(
            prometheus(stage.directory / "prometheus", [rules], targets, stage.alertmanager_url)
        )
        yield True
