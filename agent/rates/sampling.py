"""Which requests are replayed: a deterministic choice by the hash of the request's identity.

Every pod, and every mirror of the same request, chooses alike; and the choice is nested: whatever is kept at a low rate
is kept at any higher rate, so that lowering the rate under load thins the sample out without changing its nature.
"""

from __future__ import annotations

import hashlib
import re

import orjson

_SPAN = 1 << 64
_WHOLE = 1 << 16
_PROBED = 4096
_EDGE = 1024
_HEAD = 1024
_ID_AT_HEAD = re.compile(rb'\s*+\{\s*+"id"\s*+:\s*+("[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+")')
_MEMBER = rb'"(?!id")[^"\\\x00-\x1f]*+"\s*+:\s*+(?:"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"|[-+.\w]++)\s*+,\s*+'
_ID_AMONG_FIRST = re.compile(
    rb"\s*+\{\s*+(?:" + _MEMBER + rb')*+"id"\s*+:\s*+("[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+")'
)


class Sampler:
    """Keeps a share `rate` (0 to 1) of the requests."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.seen = 0
        """Requests asked about, ever. Both counts are the intake thread's alone to change; any thread may read them."""
        self.kept = 0
        """Those that were in the sample."""

    @property
    def rate(self) -> float:
        """The share kept; may be changed at any time, from any thread."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"a sampling rate is a share from 0 to 1, not {rate}")
        self._rate = rate
        self._threshold = int(rate * _SPAN)

    def chooses(self, request_id: bytes) -> bool:
        """Whether the request of this identity is in the sample; counts nothing, so any thread may ask."""
        digest = hashlib.blake2b(request_id, digest_size=8, person=b"reluscope").digest()
        return int.from_bytes(digest, "big") < self._threshold

    def keep(self, request_id: bytes) -> bool:
        """Whether the request of this identity is in the sample; counted, so for the intake thread alone."""
        kept = self.chooses(request_id)
        self.seen += 1
        self.kept += kept
        return kept


def id_at_head(body: bytes) -> str | None:
    """The request's "id", where it is the first key of a JSON body (as clients write it); else None.

    Looks at the first kilobyte only: this runs before the answer, parsing does not.
    """
    return _text(_ID_AT_HEAD.match(body, 0, _HEAD))


def id_of_response(body: bytes) -> str | None:
    """The response's "id", where only plain members ("model_name", say) stand before it in the JSON; else None.

    Servers put it before or behind the model's name. Looks at the first kilobyte only, as `id_at_head` does.
    """
    return _text(_ID_AMONG_FIRST.match(body, 0, _HEAD))


def _text(found: re.Match[bytes] | None) -> str | None:
    """The JSON string that was matched; None where it is empty or none."""
    if found is None:
        return None
    try:
        value: str = orjson.loads(found[1])
    except orjson.JSONDecodeError:
        return None
    return value or None


def identity(header_id: str | None, body_id: str | None, body: bytes) -> bytes:
    """What is hashed: the X-Request-Id header, else the JSON's "id", else the body itself.

    Of a body over 64 KiB only its length, both ends and some 4096 bytes spread over it are taken, so that the cost is
    bounded (hashing 16 MiB would hold the event loop for some 15 ms). The stride is odd, to visit all bytes of a word.
    """
    named = header_id or body_id
    if named:
        return named.encode("utf-8", "surrogatepass")
    if len(body) <= _WHOLE:
        return body
    stride = len(body) // _PROBED | 1
    return b"%d:%b%b%b" % (len(body), body[:_EDGE], body[::stride], body[-_EDGE:])
