"""A labelled calibration run as a reference: a file of window messages, made where the labelled data is.

The file is a sequence of messages as agents publish them, each after its length as a varint: protobuf's own delimited
format. No broker and no ingest is involved, so the run counts in no window of production.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from agent.wire import Envelope, Window, WireError, decode
from detector.domain.types import ModelVersion
from detector.ingestion import plausible

MAX_MESSAGE_BYTES = 1 << 28
_VARINT_BYTES = 10


class OfflineError(ValueError):
    """The file cannot be a reference; the message names it and says why."""


def read(path: Path, version: ModelVersion, now: datetime) -> list[Window]:
    """The windows in a file, all of ``version``, in order of time. Raises OfflineError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OfflineError(f"{path}: {error.strerror}") from error
    windows: list[Window] = []
    for number, message in enumerate(_split(data, path), start=1):
        try:
            envelope = decode(message)
            plausible.check(envelope, now)
        except (WireError, plausible.Implausible) as error:
            raise OfflineError(f"{path}: message {number} is unusable: {error}") from error
        if isinstance(envelope.body, Window):
            _same_model(envelope, version, f"{path}: message {number}")
            windows.append(envelope.body)
    if not windows:
        raise OfflineError(f"{path}: there is no window in it")
    return sorted(windows, key=lambda window: (window.start_ms, window.end_ms))


def write(path: Path, messages: Iterator[bytes]) -> None:
    """Writes messages, encoded as agents publish them, in the format that `read` takes."""
    with path.open("wb") as file:
        for message in messages:
            file.write(_varint(len(message)) + message)


def _same_model(envelope: Envelope, version: ModelVersion, where: str) -> None:
    if (envelope.model, envelope.digest) != (version.model, version.digest):
        raise OfflineError(
            f"{where} is of {envelope.model} with digest {envelope.digest[:12]}, "
            f"not of {version.model}@{version.version} with digest {version.digest[:12]}: "
            "run the very file that is served"
        )


def _split(data: bytes, path: Path) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        length, shift, begin = 0, 0, place
        while True:
            if place >= len(data) or place - begin >= _VARINT_BYTES:
                raise OfflineError(f"{path}: the length at byte {begin} is cut off")
            byte = data[place]
            place += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        if length > MAX_MESSAGE_BYTES or place + length > len(data):
            raise OfflineError(f"{path}: the message at byte {begin} has {length} bytes, more than there are")
        yield data[place : place + length]
        place += length


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
