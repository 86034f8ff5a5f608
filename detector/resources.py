"""Where the migrations and runbooks lie: inside the installed wheel, or in the repository beside the package."""

from __future__ import annotations

from pathlib import Path


class MissingResource(FileNotFoundError):
    """The installation is incomplete."""


def resource_dir(name: str) -> Path:
    """The folder ``name`` (migrations or runbooks); raises MissingResource naming the places looked at."""
    package = Path(__file__).resolve().parent
    places = (package / f"_{name}", package.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise MissingResource(f"no folder {name}: looked at {' and '.join(map(str, places))}; reinstall reluscope")


def migrations() -> Path:
    """Alembic's script location."""
    return resource_dir("migrations")


def runbooks() -> Path:
    """The folder of <AlertName>.md files."""
    return resource_dir("runbooks")
