"""Finds what a served model is compared with: files beside it in the repository, and their state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.replay import CPU
from agent.serving.repository import MODEL_FILE, Entry
from agent.wire import BaselineKind

REFERENCE_FILE = "reference.onnx"
HOLDOUT_FILE = "holdout.npz"

Stamp = tuple[int, int]
"""Changes when the file does, without reading it."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A model to run beside the served one."""

    kind: BaselineKind
    label: str
    """As it goes on the wire: "reference.onnx", a version, "CPUExecutionProvider"."""
    path: Path
    stamp: Stamp
    cpu_only: bool = False


def reference_of(entry: Entry, compare_previous: bool) -> Baseline | None:
    """`reference.onnx` beside the served file; without it, and if asked for, the version before the served one."""
    path = entry.path.with_name(REFERENCE_FILE)
    stamp = stamp_of(path)
    if stamp is not None:
        return Baseline("reference_model", REFERENCE_FILE, path, stamp)
    return former_of(entry) if compare_previous else None


def former_of(entry: Entry) -> Baseline | None:
    """The version before the served one; None where there is none."""
    folders = (folder for folder in entry.path.parent.parent.iterdir() if folder.name.isdecimal())
    former = (int(folder.name) for folder in folders if int(folder.name) < int(entry.version))
    for version in sorted(former, reverse=True):
        path = entry.path.parent.parent / str(version) / MODEL_FILE
        stamp = stamp_of(path)
        if stamp is not None:
            return Baseline("reference_model", str(version), path, stamp)
    return None


def cpu_of(entry: Entry) -> Baseline:
    """The served file itself, to be run on the CPU."""
    ((_, changed_ns, size),) = entry.of((entry.path.name,))
    return Baseline("cpu_provider", CPU, entry.path, (changed_ns, size), cpu_only=True)


def holdout_of(entry: Entry) -> tuple[Path, Stamp] | None:
    """The labelled holdout of a version, else of the model; None where there is none."""
    for folder in (entry.path.parent, entry.path.parent.parent):
        stamp = stamp_of(folder / HOLDOUT_FILE)
        if stamp is not None:
            return folder / HOLDOUT_FILE, stamp
    return None


def stamp_of(path: Path) -> Stamp | None:
    """(mtime in ns, size) of a file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size)
