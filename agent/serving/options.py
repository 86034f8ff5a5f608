"""Command-line options of which versions are followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from agent.options import Finite
from agent.serving.following import DEFAULT_VERSIONS
from agent.serving.server import Server

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class FollowingSettings:
    """Whom to ask which versions are served, and what holds where nobody can be asked."""

    server: Server | None
    poll_seconds: float
    timeout_seconds: float
    configured: dict[str, tuple[str, ...]]
    most: int


class ModelVersions(click.ParamType[tuple[str, tuple[str, ...]]]):
    """``MODEL=1,2``, to the model's name and its versions."""

    name = "MODEL=1,2"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        model, _, listed = value.rpartition("=")
        versions = tuple(part.strip() for part in listed.split(","))
        if not model or not all(part.isascii() and part.isdecimal() for part in versions):
            self.fail(f"{value!r} is not of the form MODEL=1,2, with version numbers", param, ctx)
        return model, tuple(str(int(part)) for part in versions)


_OPTIONS = (
    click.option("--server-url", help="The model server, http://host:port: asked which versions it serves."),
    click.option("--server-poll-seconds", default=5.0, type=Finite(0.1), help="How often it is asked."),
    click.option("--server-timeout-seconds", default=2.0, type=Finite(0.1), help="Longest wait for its answer."),
    click.option(
        "--versions",
        multiple=True,
        type=ModelVersions(),
        help="Versions that a server serves that cannot be asked. Repeat for several models.",
    ),
    click.option(
        "--max-versions",
        default=DEFAULT_VERSIONS,
        type=click.IntRange(1),
        help="Versions of a model that are observed at a time; the highest.",
    ),
)


def following_options(command: F) -> F:
    """Adds the options, in the order in which --help shows them; `following_settings` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def following_settings(values: dict[str, Any]) -> FollowingSettings:
    """The settings that the options' values mean; raises click.BadParameter where the URL is none."""
    timeout = values["server_timeout_seconds"]
    try:
        server = Server(values["server_url"], timeout) if values["server_url"] else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server-url") from error
    return FollowingSettings(
        server, values["server_poll_seconds"], timeout, dict(values["versions"]), values["max_versions"]
    )
