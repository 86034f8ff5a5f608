"""Every decoder that reads what others wrote, with valid messages to begin from."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import files, requests, texts, wires
from tests.fuzz.runner import Target


def targets(folder: Path) -> list[Target]:
    """All decoders; those of files use files in `folder`."""
    return [*wires.targets(), *requests.targets(), *texts.targets(folder / "runbooks"), *files.targets(folder)]
