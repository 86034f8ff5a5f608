"""`reluscope agent`: the command."""

from __future__ import annotations

import signal
import threading

import click

from agent.budget.memory import NoRoom
from agent.delivery.outbox import OutboxError
from agent.logging import configure
from agent.options import options
from agent.replay import ReplayError
from agent.settings import AgentSettings
from agent.sidecar import Sidecar


@click.command("agent", context_settings={"auto_envvar_prefix": "RELUSCOPE_AGENT"})
@options(AgentSettings)
def command(settings: AgentSettings) -> None:
    """Run the sidecar: sample mirrored requests, replay them, stream activation statistics to Kafka."""
    configure(settings.log_format, exception_texts=False)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        sidecar = Sidecar(settings, stop)
    except (NoRoom, OutboxError, ReplayError, OSError) as error:
        raise click.ClickException(str(error)) from error
    try:
        sidecar.run()
    except OSError as error:
        raise click.ClickException(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
