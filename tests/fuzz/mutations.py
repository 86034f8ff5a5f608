"""Small changes to valid messages: of bytes, of text, of JSON, of protobuf, of zip archives with arrays.

Each takes a random generator, the message, and other messages to take pieces from; none depends on anything else, so a
seed gives the same inputs everywhere.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz import protobuf

Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]

INTEGERS = (
    0,
    1,
    2,
    3,
    7,
    127,
    128,
    255,
    256,
    65535,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 5e-324, 1e-308, 1e38, 1e200, 1.7976931348623157e308, math.inf, -math.inf, math.nan)
_SCALARS: tuple[Any, ...] = (
    None, True, False, "", "0", "\0", "\ud800", "é", "x" * 2000, "2024-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59",
    [], {}, [[]], [{}], -1, -(1 << 63), 10**400, 0.1, 1e308, *INTEGERS,
)  # fmt: skip


def of_bytes(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Flips, overwrites, cuts, repeats, or brings in a piece of another message."""
    out = bytearray(data)
    place = random.randrange(len(out) + 1)
    length = min(random.choice((1, 1, 2, 4, 8, 32, 400)), len(out) - place)
    kind = random.randrange(7)
    if kind == 0 and place < len(out):
        out[place] ^= 1 << random.randrange(8)
    elif kind == 1:
        out[place : place + length] = random.randbytes(length)
    elif kind == 2:
        number = random.choice(INTEGERS)
        out[place : place + 8] = number.to_bytes(8, random.choice(("big", "little")))[: random.choice((1, 2, 4, 8))]
    elif kind == 3:
        del out[place : place + length]
    elif kind == 4:
        out[place:place] = out[place : place + length] * random.choice((1, 2, 50))
    elif kind == 5:
        del out[place:]
    else:
        other = random.choice(others)
        start = random.randrange(len(other) + 1)
        out[place : place + length] = other[start : start + random.choice((1, 4, 16, 200))]
    return bytes(out)


def of_lines(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Drops, repeats, swaps and mixes lines, or changes one."""
    lines = data.split(b"\n")
    place, other = random.randrange(len(lines)), random.randrange(len(lines))
    kind = random.randrange(6)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, lines[other])
    elif kind == 2:
        lines[place], lines[other] = lines[other], lines[place]
    elif kind == 3:
        lines[place] = random.choice(random.choice(others).split(b"\n"))
    elif kind == 4:
        lines[place] = random.choice(
            (b"", b"---", b"```", b"# ", b"## Meaning", b":", b"a: b: c", b"\xff\xfe", b"\r", b"\0")
        )
    else:
        lines[place] = of_bytes(random, lines[place], others)
    return b"\n".join(lines)


def of_json(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Replaces, drops, repeats, wraps or moves a value anywhere in the tree; what follows the JSON stays."""
    try:
        text = data.decode("utf-8", "surrogateescape")
        tree, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return of_bytes(random, data, others)
    rest = text[end:].encode("utf-8", "surrogateescape")
    places = list(_places(tree))
    for _ in range(random.choice((1, 1, 2, 4))):
        if not places:
            tree = random.choice(_SCALARS)
            break
        parent, key = random.choice(places)
        if (isinstance(parent, list) and key >= len(parent)) or (isinstance(parent, dict) and key not in parent):
            continue  # gone with an earlier change
        _change(random, parent, key, places)
    return _dumped(random, tree) + rest


def of_protobuf(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes one field, at any depth; bytes where the message is no protobuf."""
    changed = protobuf.mutate(random, data, INTEGERS, FLOATS)
    return of_bytes(random, data, others) if changed is None else changed


def of_archive(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes a member, its name or its array's header, and packs the archive again; or the archive's own bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # whatever a broken archive brings: its bytes can be changed all the same
        return of_bytes(random, data, others)
    if not members or random.random() < 0.3:
        return of_bytes(random, data, others)
    place = random.randrange(len(members))
    name, content = members[place]
    kind = random.randrange(5)
    if kind == 0:
        content = of_bytes(random, content, [content])
    elif kind in (1, 2):
        content = _of_array_header(random, content)
    elif kind == 3:
        name = random.choice(("", "labels.npy", "x.npy", "../x.npy", "x", "\0.npy", name.upper()))
    else:
        members.append((name, content))
    members[place] = name, content
    packed = io.BytesIO()
    with zipfile.ZipFile(
        packed, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    ) as archive:
        for member, text in members:
            archive.writestr(zipfile.ZipInfo(member or "_"), text)
    return packed.getvalue()


def _of_array_header(random: Random, content: bytes) -> bytes:
    """Another shape, type or order in the text that begins a .npy file, its length kept right."""
    head, text, body = content[:10], content[10:128], content[128:]
    words = (
        (b"(", b"(" + str(random.choice(INTEGERS)).encode() + b","), (b"<f4", b"|O"), (b"<f4", b"<f8"),
        (b"<i8", b"<u8"), (b"<i8", b"<U9"), (b"<", b">"), (b"False", b"True"), (b"'shape'", b"'shade'"), (b"}", b""),
        (b", ", b", -"),
        (b"<f4", b"|V0"), (b"<i8", b"<M8[s]"), (b"(", b"((" * 60), (b"<f4", b"<f2"), (b")", b")+1"),
    )  # fmt: skip
    old, new = random.choice(words)
    text = text.replace(old, new, 1).rstrip()
    text = text.ljust(117)[:65000] + b"\n"
    return head[:8] + len(text).to_bytes(2, "little") + text + body


def _places(tree: Any) -> Any:
    pending = [tree]
    while pending:
        node = pending.pop()
        keys: Any = range(len(node)) if isinstance(node, list) else list(node) if isinstance(node, dict) else ()
        for key in keys:
            yield node, key
            pending.append(node[key])


def _change(random: Random, parent: Any, key: Any, places: Sequence[tuple[Any, Any]]) -> None:
    kind = random.randrange(7)
    if kind <= 1:
        parent[key] = random.choice(_SCALARS)
    elif kind == 2:
        del parent[key]
    elif kind == 3:
        value = parent[key]
        for _ in range(random.choice((1, 2, 100, 1100))):
            value = [value]
        parent[key] = value
    elif kind == 4:
        other, where = random.choice(places)
        try:
            parent[key] = json.loads(json.dumps(other[where]))  # a copy, so that the tree stays one
        except (LookupError, RecursionError):
            parent[key] = None
    elif kind == 5 and isinstance(parent, list):
        parent[key:key] = [parent[key]] * random.choice((1, 3, 200))
    elif isinstance(parent, dict):
        parent[random.choice((key + "x", key.upper(), "", "\0", "id", "data", "name"))] = parent.pop(key)


def _dumped(random: Random, tree: Any) -> bytes:
    try:
        text = json.dumps(tree, ensure_ascii=random.random() < 0.7)
    except RecursionError:
        text = "[" * 2000
    return text.encode("utf-8", "surrogatepass")
