"""Reads `holdout.npz`: a model's inputs and the right class of each, checked against what the model declares."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.datatypes import NUMPY
from agent.intake.tensors import TensorSpec
from agent.replay.batching import Axes, Tensors, cut
from agent.serving.repository import digest

LABELS = "labels"
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class HoldoutError(ValueError):
    """A holdout that cannot be used; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Holdout:
    """Labelled requests."""

    inputs: dict[str, NDArray[Any]]
    """By input name, each of the model's dtype, with n requests along its axis of requests."""
    labels: NDArray[np.int64]
    """Shape (n,)."""
    axes: Axes
    """Of each input, the axis of its requests."""
    digest: str
    """sha256 of the file."""

    def rows(self, start: int, stop: int) -> Tensors:
        """The inputs of the requests [start, stop)."""
        return cut(self.inputs, self.axes, start, stop)


def read_holdout(path: Path, specs: Sequence[TensorSpec], axes: Axes, max_bytes: int) -> Holdout:
    """Reads a holdout.

    Args:
        path: the file.
        specs: the model's inputs.
        axes: of each input, the axis of its requests, as in `agent.replay.batching`.
        max_bytes: most that the arrays may have together.

    Raises:
        HoldoutError: in every case of a file that does not fit.
    """
    try:
        arrays = _arrays(path, max_bytes)
    except Exception as error:  # zip, its compressors and numpy's headers have a dozen kinds
        if isinstance(error, HoldoutError) and str(error).startswith(str(path)):
            raise
        raise HoldoutError(f"{path}: not an .npz file of plain arrays ({error}); numpy.savez writes one") from error
    labels = _labels(path, arrays)
    names = {spec.name for spec in specs}
    unknown = sorted(set(arrays) - names - {LABELS})
    if unknown:
        raise HoldoutError(f"{path}: array {unknown[0]!r} is no input of the model; its inputs are {sorted(names)}")
    inputs = {}
    for spec in specs:
        inputs[spec.name] = _input(path, spec, arrays.get(spec.name), axes.get(spec.name, 0), len(labels))
    return Holdout(inputs, labels, axes, digest(path))


def check_classes(path: Path, labels: NDArray[np.int64], classes: int) -> None:
    """Raises HoldoutError where a label is no class of a model with ``classes`` classes, or there are none."""
    if classes == 0:
        raise HoldoutError(f"{path}: the model has no class output (a float output of rank 2 with two columns or more)")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise HoldoutError(f"{path}: {len(wrong)} labels are no class: the model has classes 0 to {classes - 1}")


def unpacked_size(path: Path) -> int:
    """Bytes of the arrays in the file, as it says; 0 where it is none, which reading it then says."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(info.file_size for info in archive.infolist())
    except Exception:  # of a dozen kinds, as in `read_holdout`
        return 0


def _arrays(path: Path, max_bytes: int) -> dict[str, NDArray[Any]]:
    size = unpacked_size(path)
    if size > max_bytes:
        raise HoldoutError(
            f"{path}: {size} bytes unpacked, more than {max_bytes}; use fewer examples or raise --holdout-mib"
        )
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(info.compress_type not in _COMPRESSIONS for info in members):  # others take what memory a header tells
            raise HoldoutError("a member that is neither stored nor deflated")
        if any(info.compress_size > path.stat().st_size for info in members):
            raise HoldoutError("a member that is larger than the file")
        return {info.filename.removesuffix(".npy"): _array(archive.read(info)) for info in members}


def _array(content: bytes) -> NDArray[Any]:
    """One member. numpy itself would make room for whatever shape its header tells, before it reads on."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise HoldoutError(f"an array in numpy's format {version}")
    shape, by_column, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise HoldoutError("an array of Python objects")
    data = content[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(data) or not dtype.itemsize:
        raise HoldoutError(f"an array of shape {list(shape)} and type {dtype} in {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C")


def _labels(path: Path, arrays: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    labels = arrays.get(LABELS)
    if labels is None:
        raise HoldoutError(f"{path}: no array {LABELS!r}; it has {sorted(arrays)}")
    if labels.dtype.kind not in "iu":
        raise HoldoutError(f"{path}: {LABELS!r} is {labels.dtype}; class numbers have to be integers")
    if labels.ndim != 1 or len(labels) == 0:
        raise HoldoutError(f"{path}: {LABELS!r} has shape {list(labels.shape)}, not (n,) with n at least 1")
    if labels.dtype == np.uint64 and int(labels.max()) > np.iinfo(np.int64).max:
        raise HoldoutError(f"{path}: a label is beyond 63 bits")
    return labels.astype(np.int64)


def _input(path: Path, spec: TensorSpec, array: NDArray[Any] | None, axis: int | None, count: int) -> NDArray[Any]:
    if array is None:
        raise HoldoutError(f"{path}: no array for the model's input {spec.name!r}")
    if axis is not None and (array.ndim <= axis or array.shape[axis] != count):
        raise HoldoutError(f"{path}: {spec.name!r} has shape {list(array.shape)}, but there are {count} labels")
    wanted = spec.shape
    fits = array.ndim == len(wanted) and all(
        place == axis or extent in (-1, found)
        for place, (extent, found) in enumerate(zip(wanted, array.shape, strict=True))
    )
    if not fits:
        raise HoldoutError(f"{path}: {spec.name!r} has shape {list(array.shape)}, the model wants {list(wanted)}")
    dtype = NUMPY.get(spec.datatype)
    if dtype is None:
        raise HoldoutError(f"{path}: the model's input {spec.name!r} is {spec.datatype}, which cannot be held out")
    floats = array.dtype.kind == "f" and dtype.kind == "f"  # float64 is what numpy makes; the model's type decides
    if not floats and not np.can_cast(array.dtype, dtype, "safe"):
        raise HoldoutError(f"{path}: {spec.name!r} is {array.dtype}, the model wants {dtype}")
    with np.errstate(over="ignore"):
        values = array.astype(dtype, copy=False)
    if dtype.kind == "f" and not np.isfinite(values).all():
        wrong = int((~np.isfinite(values)).sum())
        raise HoldoutError(
            f"{path}: {spec.name!r} has {wrong} elements that are NaN or infinite as {dtype}; leave these examples out"
        )
    return values
