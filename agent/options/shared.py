"""Settings that agents and detectors have alike."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from agent.options.generate import SECTION, Option


def _version(value: Any) -> Any:
    """A protocol version as kafka-python wants it; raises ValueError where a text is none."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(int(part) for part in value.split("."))
    except ValueError:
        raise ValueError(f"{value!r} is no version such as 2.3") from None


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Kafka:
    """Where the windows go through."""

    bootstrap_servers: str
    """Kafka, host:port[,host:port]."""
    topic: str = "reluscope.windows"
    """Kafka topic for windows and deployments."""
    api_version: Annotated[
        tuple[int, ...] | None, BeforeValidator(_version), Option("kafka_api_version", metavar="MAJOR.MINOR")
    ] = None
    """Such as 2.3; the broker is asked where not given."""
