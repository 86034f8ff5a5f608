"""Protobuf's wire format without a schema: taken apart, changed in one place, put together again."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

Field = tuple[int, int, int | bytes]
"""Number, wire type (0 varint, 1 eight bytes, 2 with a length, 5 four bytes), value."""
_DEPTH = 6


def mutate(random: Random, data: bytes, integers: Sequence[int], floats: Sequence[float]) -> bytes | None:
    """The message with one field changed, dropped, repeated, moved or renumbered; None where it is no protobuf."""
    fields = parse(data)
    return None if not fields else join(_changed(random, fields, integers, floats, 0))


def parse(data: bytes) -> list[Field] | None:
    """The fields of a message in order; None where the bytes are none."""
    fields: list[Field] = []
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if place < 0 or number == 0 or kind not in (0, 1, 2, 5):
            return None
        value: int | bytes
        if kind == 0:
            value, place = _varint(data, place)
            if place < 0:
                return None
        else:
            length = 8 if kind == 1 else 4
            if kind == 2:
                length, place = _varint(data, place)
            if place < 0 or place + length > len(data):
                return None
            value = data[place : place + length]
            place += length
        fields.append((number, kind, value))
    return fields


def join(fields: Sequence[Field]) -> bytes:
    """The inverse of `parse`."""
    out = bytearray()
    for number, kind, value in fields:
        out += varint(number << 3 | kind)
        if isinstance(value, int):
            out += varint(value)
        else:
            out += varint(len(value)) + value if kind == 2 else value
    return bytes(out)


def varint(number: int) -> bytes:
    """An unsigned number, seven bits a byte."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _changed(
    random: Random, fields: list[Field], integers: Sequence[int], floats: Sequence[float], depth: int
) -> list[Field]:
    place = random.randrange(len(fields))
    number, kind, value = fields[place]
    inner = parse(value) if isinstance(value, bytes) and kind == 2 and depth < _DEPTH else None
    if inner and random.random() < 0.8:
        changed: int | bytes = join(_changed(random, inner, integers, floats, depth + 1))
        return [*fields[:place], (number, kind, changed), *fields[place + 1 :]]
    act = random.randrange(8)
    if act == 0:
        return fields[:place] + fields[place + 1 :]
    if act == 1:
        return fields[: place + 1] + [fields[place]] * random.choice((1, 2, 30)) + fields[place + 1 :]
    if act == 2:
        number = random.choice((number + 1, max(1, number - 1), 1, 15, 100))
    elif act == 3:
        other = random.randrange(len(fields))
        fields = list(fields)
        fields[place], fields[other] = fields[other], fields[place]
        return fields
    else:
        value = _value(random, kind, value, integers, floats)
    return [*fields[:place], (number, kind, value), *fields[place + 1 :]]


def _value(
    random: Random, kind: int, value: int | bytes, integers: Sequence[int], floats: Sequence[float]
) -> int | bytes:
    if isinstance(value, int):
        return random.choice((random.choice(integers), value + 1, max(0, value - 1), value ^ 1 << random.randrange(64)))
    if kind == 1:
        return struct.pack("<d", random.choice(floats))
    if kind == 5:
        return random.randbytes(4)
    which = random.randrange(5)
    if which == 0 and len(value) % 8 == 0 and value:  # packed doubles
        place = random.randrange(len(value) // 8) * 8
        return value[:place] + struct.pack("<d", random.choice(floats)) + value[place + 8 :]
    if which <= 2:  # packed integers
        numbers = []
        place = 0
        while 0 <= place < len(value):
            one, place = _varint(value, place)
            numbers.append(one)
        if place >= 0 and numbers:
            numbers[random.randrange(len(numbers))] = random.choice(integers)
            if random.random() < 0.2:
                numbers *= random.choice((2, 40))
            return b"".join(map(varint, numbers))
    if which == 3:
        return value * random.choice((0, 2, 300))
    return random.choice((b"", b"\0", b"\xff\xfe", value[:-1], value + b"x", random.randbytes(9)))


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number and the place behind it, which is -1 where there is none."""
    number = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return number & (1 << 64) - 1, place
        shift += 7
    return 0, -1
