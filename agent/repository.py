"""A model repository as Triton lays it out, `<root>/<model>/<version>/model.onnx`, and what is loaded from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

MODEL_FILE = "model.onnx"


class RepositoryError(ValueError):
    """A repository that cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version's file. ``stamp`` changes when the file does, without reading it."""

    model: str
    version: str
    path: Path
    stamp: tuple[int, int]


def scan(root: Path) -> dict[str, Entry]:
    """The highest numbered version of every model, as Triton's default version policy serves it.

    Folders without a model file are passed over: they are still being written. Raises RepositoryError where ``root`` is
    no folder.
    """
    if not root.is_dir():
        raise RepositoryError(f"{root}: no such folder; --repository takes <model>/<version>/{MODEL_FILE} below it")
    found: dict[str, Entry] = {}
    for path in root.glob(f"*/*/{MODEL_FILE}"):
        model, version = path.parts[-3:-1]
        if not version.isdecimal():
            continue
        newest = found.get(model)
        if newest is None or int(version) > int(newest.version):
            status = path.stat()
            found[model] = Entry(model, version, path, (status.st_mtime_ns, status.st_size))
    return found


def digest(path: Path) -> str:
    """sha256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
