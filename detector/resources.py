"""Where migrations, runbooks and rules lie: inside the installed wheel, or in the repository beside the package."""

from __future__ import annotations

from pathlib import Path


class MissingResource(FileNotFoundError):
    """The installation is incomplete."""


def resource_dir(name: str, beside: str | None = None) -> Path:
    """The folder ``name``, in the repository ``beside``; raises MissingResource naming the places looked at."""
    package = Path(__file__).resolve().parent
    places = (package / f"_{name}", package.parent / (beside or name))
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


def prometheus() -> Path:
    """The folder of the alerting rules."""
    return resource_dir("prometheus", "deploy/prometheus")
