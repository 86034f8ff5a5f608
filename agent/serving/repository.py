"""A model repository as Triton lays it out, `<root>/<model>/<version>/model.onnx`, and what is loaded from it."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

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

    def of(self, names: Collection[str]) -> Stamp:
        """The part of the stamp that speaks of the files with these names."""
        return tuple(one for one in self.stamp if one[0] in names)


def scan(root: Path) -> dict[str, Entry]:
    """The highest numbered version of every model, as Triton's default version policy serves it.

    Folders without a model file are passed over, as is what goes while it is looked at: both are being written. Raises
    RepositoryError where ``root`` is no folder.
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
            entry = Entry(model, version, path, _stamp(path.parent))
            if entry.of((MODEL_FILE,)):
                found[model] = entry
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
