"""Just enough of protobuf's wire format to walk through a message without reading it into memory.

Source: https://protobuf.dev/programming-guides/encoding/ (varints, tags, length-delimited fields).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_VARINT, _FIXED64, _MESSAGE, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10


@dataclass(frozen=True, slots=True)
class Field:
    """One field: the tag begins at ``start``, the value (without its length) at ``value``, and both end at ``end``."""

    number: int
    is_message: bool
    """Whether it is length-delimited: a message, a string, bytes or a packed array."""
    start: int
    value: int
    end: int


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in data[start:end]; raises ValueError where it is no well-formed message."""
    place = start
    while place < end:
        tag, value = _varint(data, place, end)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            stop = _varint(data, value, end)[1]
        elif kind in _FIXED_BYTES:
            stop = value + _FIXED_BYTES[kind]
        elif kind == _MESSAGE:
            length, value = _varint(data, value, end)
            stop = value + length
        else:
            raise ValueError(f"wire type {kind} at byte {place}")
        if number == 0 or stop > end:
            raise ValueError(f"a field that does not fit at byte {place}")
        yield Field(number, kind == _MESSAGE, place, value, stop)
        place = stop


def header(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _encode(number << 3 | _MESSAGE) + _encode(length)


def _varint(data: memoryview, place: int, end: int) -> tuple[int, int]:
    value = 0
    for count in range(_LONGEST_VARINT):
        if place + count >= end:
            raise ValueError("it ends in the middle of a number")
        byte = data[place + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, place + count + 1
    raise ValueError(f"a number without end at byte {place}")


def _encode(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
