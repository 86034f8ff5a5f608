"""A runbook as it is stored, served and linked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Runbook:
    """One version of the text that on-call reads."""

    name: str
    """The alert's name."""
    version: int
    sha256: str
    """Of ``body`` in UTF-8."""
    body: str
    """The whole file, front matter included, with Unix line ends."""
    severity: str
    cause: str
    owner: str
