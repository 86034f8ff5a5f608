"""A model repository as Triton lays it out, `<root>/<model>/<version>/model.onnx`, and what is loaded from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MODEL_FILE = "model.onnx"
_PAIRED_FILES = frozenset({"reference.onnx", "holdout.npz"})


class RepositoryError(ValueError):
    """A repository that cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version's file. ``stamp`` changes when it or its external data does, without reading them."""

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
            stamp = _stamp(path)
            if stamp is not None:
                found[model] = Entry(model, version, path, stamp)
    return found


def _stamp(model: Path) -> tuple[int, int] | None:
    """Newest change and total size of a model's files; None where it is no file, or goes as it is looked at.

    Its external data may be any file beside it; what paired replay reads there is none of the model's.
    """
    try:
        beside = [path for path in model.parent.iterdir() if path.name not in _PAIRED_FILES and path.is_file()]
        statuses = [path.stat() for path in beside]
        if not model.is_file():
            return None
    except OSError:
        return None
    return max(status.st_mtime_ns for status in statuses), sum(status.st_size for status in statuses)


def digest(path: Path, external: Iterable[Path] = ()) -> str:
    """sha256 of a model, lower-case hex: of its file, or of the digests of that and of its external data in order."""
    own = _digest(path)
    others = [_digest(file) for file in external]
    return hashlib.sha256("".join([own, *others]).encode()).hexdigest() if others else own


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
