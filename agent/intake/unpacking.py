"""Bodies as they came, and what they unpack to, within `Limits`: nothing is unpacked beyond what was counted for it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from agent.intake.tensors import OipError

_DEFLATE_RATIO = 1032
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all that are being received, may cost."""

    max_body_bytes: int = 16 << 20
    """As received, so compressed where the client compresses."""
    max_decompressed_bytes: int = 32 << 20
    max_json_bytes: int = 8 << 20
    """The JSON part; parsing it holds the interpreter, some 4 ms per MiB of numbers."""
    max_json_containers: int = 1 << 16
    """Objects and arrays in the JSON: each costs 20 times its text in memory."""
    max_elements: int = 8 << 20
    """Elements of all inputs together."""
    max_receiving_bytes: int = 64 << 20
    """Bodies being received at one time, all connections together."""
    max_receive_seconds: float = 10.0
    """From the headers to the end of the body."""


DEFAULT_LIMITS = Limits()


def decompress(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """Undo a Content-Encoding, never producing more than `max_bytes`.

    Raises:
        OipError: "bad_encoding" (unknown, broken, cut short or followed by other bytes) or "too_large".
    """
    if encoding in (None, "", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise OipError("bad_encoding", "the Content-Encoding is not supported, only gzip and deflate")
    # HTTP's "deflate" is the zlib format, 15 window bits; 16 more select gzip's.
    inflater = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
    try:
        data = inflater.decompress(body, max_bytes + 1)
    except zlib.error:
        raise OipError("bad_encoding", f"the body is no {encoding} stream") from None
    if len(data) > max_bytes:
        raise OipError("too_large", f"the {encoding} body decompresses to more than {max_bytes} bytes")
    if not inflater.eof or inflater.unused_data:
        raise OipError("bad_encoding", f"the {encoding} body is cut short or followed by other bytes")
    return data


def unpacked_size(body: bytes, encoding: str | None, max_bytes: int) -> int:
    """The most bytes that a body may unpack to, without unpacking it; 0 where it is not packed, or is no such stream.

    gzip says so in its last four bytes (RFC 1952), and a stream that holds more is refused; deflate does not say, but
    cannot make more than 1032 of one byte (https://zlib.net/zlib_tech.html).

    Raises:
        OipError: "too_large", where the stream says that it holds more than `max_bytes`.
    """
    if encoding == "deflate":
        return min(_DEFLATE_RATIO * len(body), max_bytes)
    if encoding != "gzip" or not body.startswith(_GZIP):
        return 0
    size = int.from_bytes(body[-4:], "little")
    if size > max_bytes:
        raise OipError("too_large", f"the gzip body decompresses to more than {max_bytes} bytes")
    return size


def unpacked(body: bytes, encoding: str | None, limits: Limits) -> bytes:
    """A body, without its Content-Encoding; raises OipError where it is broken, or too large either way."""
    if len(body) > limits.max_body_bytes:
        raise OipError("too_large", f"the body has {len(body)} bytes, more than {limits.max_body_bytes}")
    try:
        announced = unpacked_size(body, encoding, limits.max_decompressed_bytes)
    except OipError:  # or what looks like its end is none, which is said then
        return decompress(body, encoding, limits.max_decompressed_bytes)
    if encoding == "gzip":
        return _of_announced_size(body, encoding, announced)
    return decompress(body, encoding, limits.max_decompressed_bytes)


def _of_announced_size(body: bytes, encoding: str, size: int) -> bytes:
    """Never makes more than the stream says it holds: that is what was counted."""
    try:
        return decompress(body, encoding, size)
    except OipError as error:
        if error.reason != "too_large":
            raise
        message = f"the {encoding} body holds more than the {size} bytes that its end says"
        raise OipError("bad_encoding", message) from error
