"""A model repository as Triton lays it out, `<root>/<model>/<version>/model.onnx`, and what is loaded from it."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.budget.shares import ModelKey

MODEL_FILE = "model.onnx"

Stamp = tuple[tuple[str, int, int], ...]
"""(name, mtime in ns, size) of files, by name."""


class RepositoryError(ValueError):
    """A repository that cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version's file."""

    model: str
    version: str
    path: Path
    stamp: Stamp
    """Changes when the file, or any file beside it, does, without reading them."""

    @property
    def key(self) -> ModelKey:
        """Model and version."""
        return self.model, self.version

    def of(self, names: Collection[str]) -> Stamp:
        """The part of the stamp that speaks of the files with these names."""
        return tuple(one for one in self.stamp if one[0] in names)


Choose = Callable[[Mapping[str, Collection[str]]], Mapping[str, Collection[str]]]
"""Of the versions by model, those that are wanted."""


def highest(present: Mapping[str, Collection[str]]) -> Mapping[str, Collection[str]]:
    """The highest numbered version of every model, as Triton serves it where nothing else is said."""
    return {model: [max(versions, key=int)] for model, versions in present.items()}


def scan(root: Path, choose: Choose = highest) -> dict[ModelKey, Entry]:
    """The wanted versions of every model, by model and version.

    Folders without a model file are passed over, as is what goes while it is looked at: both are being written. Raises
    RepositoryError where ``root`` is no folder.
    """
    if not root.is_dir():
        raise RepositoryError(f"{root}: no such folder; --repository takes <model>/<version>/{MODEL_FILE} below it")
    there: dict[str, dict[str, Path]] = {}
    for path in root.glob(f"*/*/{MODEL_FILE}"):
        model, version = path.parts[-3:-1]
        # As Triton does, versions with leading zeros are passed over: 01 would be 1.
        if version.isascii() and version.isdecimal() and str(int(version)) == version and path.is_file():
            there.setdefault(model, {})[version] = path
    found: dict[ModelKey, Entry] = {}
    for model, versions in sorted(choose({model: paths.keys() for model, paths in there.items()}).items()):
        for version in versions:
            path = there[model][version]
            entry = Entry(model, version, path, _stamp(path.parent))
            if entry.of((MODEL_FILE,)):
                found[entry.key] = entry
    return found


def _stamp(folder: Path) -> Stamp:
    """Of the files of a version: the model, its external data, what else lies there; folders are passed over."""
    stamps = []
    with contextlib.suppress(OSError):  # the folder is being removed
        for path in sorted(folder.iterdir()):
            with contextlib.suppress(OSError):  # so is the file
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    stamps.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def digest(path: Path, external: Iterable[Path] = ()) -> str:
    """sha256 of a model, lower-case hex: of its file, or of the digests of that and of its external data in order."""
    own = _digest(path)
    others = [_digest(file) for file in external]
    return hashlib.sha256("".join([own, *others]).encode()).hexdigest() if others else own


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
