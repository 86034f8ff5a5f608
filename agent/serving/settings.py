"""Whom to ask which versions are served, and what holds where nobody can be asked, as the user states it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from agent.options import SECTION, Option
from agent.serving.server import Server

_DEFAULT_VERSIONS = 2


def _versions(value: Any) -> Any:
    """``MODEL=1,2`` to the model's name and its versions, for each of several; raises ValueError."""
    told: Iterable[Any] = value.split() if isinstance(value, str) else value
    return tuple(_of_model(one) if isinstance(one, str) else one for one in told)


def _of_model(text: str) -> tuple[str, tuple[str, ...]]:
    model, _, listed = text.rpartition("=")
    versions = [part.strip() for part in listed.split(",")]
    if not model or not all(part.isascii() and part.isdecimal() for part in versions):
        raise ValueError(f"{text!r} is not of the form MODEL=1,2, with version numbers")
    return model, tuple(str(int(part)) for part in versions)


def _url(value: str | None) -> str | None:
    if value:
        Server(value, 1.0)
    return value or None


@dataclass(frozen=True, slots=True, config=SECTION)
class FollowingSettings:
    """Which versions of the models are observed."""

    server_url: Annotated[str | None, AfterValidator(_url), Option(metavar="URL", default="none")] = None
    """The model server, http://host:port: asked which versions it serves."""
    server_poll_seconds: float = Field(default=5.0, ge=0.1)
    """How often it is asked."""
    server_timeout_seconds: float = Field(default=2.0, ge=0.1)
    """Longest wait for its answer."""
    versions: Annotated[
        tuple[tuple[str, tuple[str, ...]], ...],
        BeforeValidator(_versions),
        Option(metavar="MODEL=1,2", multiple=True),
    ] = ()
    """Versions that a server serves that cannot be asked. Repeat for several models."""
    max_versions: int = Field(default=_DEFAULT_VERSIONS, ge=1)
    """Versions of a model that are observed at a time; the highest."""
