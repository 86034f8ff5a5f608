"""Model files: read without their weights, written again with nodes added, at no cost in memory.

Instrumenting needs the graph, not the weights, and a served model may hold gigabytes of them, inside the file or
beside it. `open_model` maps the file and copies all but the large initializers; `ModelFile.write` streams those from
the mapped file behind a changed graph. Both rest on one property of protobuf: a message that is written in two parts,
one behind the other, is read as the merge of both.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, inliner

from agent.instrument import protobuf
from agent.instrument.errors import InstrumentError

_LARGE = 4096  # bytes of an initializer that stays in the file
_SMALL_EXTERNAL = 1 << 16  # bytes of external data that are read, for they may be shapes
_IN_MEMORY = 1 << 23  # bytes of a model that is handed to a session as bytes and not by a file of its own
_GRAPH, _INITIALIZER = 7, 5  # field numbers of ModelProto and GraphProto
_NAME = 8
_VALUES = frozenset({4, 5, 6, 7, 9, 10, 11})  # fields of TensorProto that hold values

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""onnxruntime's session option for the folder of external data of a model that comes as bytes."""


@dataclass(frozen=True, slots=True)
class SessionModel:
    """What a session is made of: the bytes or the path of a model, and session options that belong to it."""

    source: bytes | str
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model without its large weights, and where these are."""

    proto: onnx.ModelProto
    path: Path | None = None
    weights: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Initializer to its bytes [start, end) in the file: whole TensorProtos."""
    external_files: tuple[Path, ...] = ()
    """The files beside the model that hold its external data."""
    stamp: tuple[int, ...] = ()
    """Changes and sizes of these files when they were read."""

    @property
    def size(self) -> int:
        """Bytes of the model with its external data."""
        if self.path is None:
            return self.proto.ByteSize()
        return sum(file.stat().st_size for file in (self.path, *self.external_files))

    def inlined(self) -> onnx.ModelProto:
        """The model with its local functions inlined; raises what onnx raises where they cannot be."""
        return inliner.inline_local_functions(self.proto) if self.proto.functions else self.proto

    def _unchanged(self) -> None:
        if self.path is not None and self.stamp != _stamp(self.path, *self.external_files):
            raise InstrumentError(f"{self.path}: the file has changed since it was read")

    def write(self, proto: onnx.ModelProto, out: BinaryIO) -> None:
        """Writes ``proto``, a changed copy of this model's, with the weights that are still in this model's file."""
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        kept = [tensor for tensor in changed.graph.initializer if tensor.name not in self.weights]
        del changed.graph.initializer[:]
        changed.graph.initializer.extend(kept)
        out.write(changed.SerializeToString())
        if self.path is None or not self.weights:
            return
        heads = [protobuf.header(_INITIALIZER, end - start) for start, end in self.weights.values()]
        size = sum(map(len, heads)) + sum(end - start for start, end in self.weights.values())
        out.write(protobuf.header(_GRAPH, size))
        with _mapped(self.path) as data:
            for head, (start, end) in zip(heads, self.weights.values(), strict=True):
                out.write(head)
                out.write(data[start:end])

    @contextmanager
    def session_model(self, proto: onnx.ModelProto, options: Mapping[str, str]) -> Iterator[SessionModel]:
        """``proto``, a changed copy of this model's, for a session with ``options``; good until the block ends.

        A large model is written into a temporary file, which a session reads with half the memory that bytes take.
        Raises InstrumentError where the model's own file is another by now: its weights would be another model's.
        """
        self._unchanged()
        external = bool(self.external_files)
        config = dict(options)
        if self.path is not None and external:
            config[EXTERNAL_FOLDER] = str(self.path.parent)
        if self.path is None or not self.weights:
            yield SessionModel(proto.SerializeToString(), config)
            return
        if external or self.path.stat().st_size <= _IN_MEMORY:
            buffer = BytesIO()
            self.write(proto, buffer)
            yield SessionModel(buffer.getvalue(), config)
            return
        with TemporaryDirectory(prefix="reluscope-") as folder:
            file = Path(folder) / "model.onnx"
            with file.open("wb") as out:
                self.write(proto, out)
            yield SessionModel(str(file), config)


def open_model(path: Path) -> ModelFile:
    """Reads a model but for its weights; raises InstrumentError where it is missing or no ONNX model."""
    stamp = _stamp(path)  # before reading: a change meanwhile is noticed later
    try:
        with _mapped(path) as data:
            light, weights = _without_weights(data)
        proto = onnx.ModelProto.FromString(light)
    except FileNotFoundError as error:
        raise InstrumentError(f"{error.filename or path}: no such file") from error
    except (DecodeError, ValueError, OSError) as error:
        raise InstrumentError(f"{path}: not an ONNX model ({str(error) or type(error).__name__})") from error
    if not proto.graph.node:
        raise InstrumentError(f"{path}: not an ONNX model (it has no graph)")
    external = [tensor for tensor in proto.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    files = dict.fromkeys(external_data_helper.ExternalDataInfo(tensor).location for tensor in external)
    for tensor in external:
        _read_small(tensor, path)
    beside = tuple(path.parent / file for file in files)
    return ModelFile(proto, path, weights, beside, stamp if not beside else _stamp(path, *beside))


def _stamp(*files: Path) -> tuple[int, ...]:
    try:
        statuses = [file.stat() for file in files]
    except OSError:
        return ()
    return tuple(number for status in statuses for number in (status.st_mtime_ns, status.st_size))


def _read_small(tensor: onnx.TensorProto, path: Path) -> None:
    info = external_data_helper.ExternalDataInfo(tensor)
    file = path.parent / info.location
    if not file.is_file():
        raise InstrumentError(f"{file}: no such file; {path.name} has its weights there (external data)")
    if 0 < (info.length or 0) <= _SMALL_EXTERNAL:
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (onnx.checker.ValidationError, ValueError, OSError) as error:
            raise InstrumentError(f"{path}: external data of {tensor.name}: {error}") from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            yield view


def _without_weights(data: memoryview) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The serialised model with large initializers emptied, and where these are in the file."""
    light = bytearray()
    weights: dict[str, tuple[int, int]] = {}
    for outer in protobuf.fields(data, 0, len(data)):
        if outer.number != _GRAPH or not outer.is_message:
            light += data[outer.start : outer.end]
            continue
        graph = bytearray()
        for inner in protobuf.fields(data, outer.value, outer.end):
            if inner.number == _INITIALIZER and inner.is_message and inner.end - inner.value > _LARGE:
                name, emptied = _emptied(data, inner)
                weights[name] = (inner.value, inner.end)
                graph += protobuf.header(_INITIALIZER, len(emptied)) + emptied
            else:
                graph += data[inner.start : inner.end]
        light += protobuf.header(_GRAPH, len(graph)) + graph
    return bytes(light), weights


def _emptied(data: memoryview, tensor: protobuf.Field) -> tuple[str, bytes]:
    name, kept = "", bytearray()
    for part in protobuf.fields(data, tensor.value, tensor.end):
        if part.number == _NAME:
            name = bytes(data[part.value : part.end]).decode()
        if part.number not in _VALUES:
            kept += data[part.start : part.end]
    return name, bytes(kept)
