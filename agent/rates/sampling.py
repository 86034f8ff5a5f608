"""Which requests are replayed: each arrival draws for itself.

Neither a client's ids nor the bodies decide: a constant id, a retry or a repeated body has the same chance as any other
request. The choice is nested: what is kept at a low rate is what the same draws would keep at any higher rate, so that
lowering the rate under load thins the sample out without changing its nature. A response shares its request's draw.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import orjson

from agent.rates.pairs import Arrival, Pairs

_HEAD = 1024
_ID_AT_HEAD = re.compile(rb'\s*+\{\s*+"id"\s*+:\s*+("[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+")')
_MEMBER = rb'"(?!id")[^"\\\x00-\x1f]*+"\s*+:\s*+(?:"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"|[-+.\w]++)\s*+,\s*+'
_ID_AMONG_FIRST = re.compile(
    rb"\s*+\{\s*+(?:" + _MEMBER + rb')*+"id"\s*+:\s*+("[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+")'
)


class Sampler:
    """Keeps a share `rate` (0 to 1) of the requests. `request` and `response` belong to the thread of the intake."""

    def __init__(self, rate: float, pairs: Pairs | None = None, draw: Callable[[], float] | None = None) -> None:
        """``draw`` gives numbers evenly from [0, 1); the default is seeded anew in each process."""
        self.rate = rate
        self._pairs = Pairs() if pairs is None else pairs
        self._draw = draw or random.Random().random  # noqa: S311 - a sample, not a secret
        self.seen = 0
        """Requests that arrived, ever. Both counts are the intake thread's alone to change; any thread may read."""
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

    def request(self, model: str, request_id: str | None) -> Arrival:
        """Whether a request that arrives now is in the sample; counted."""
        arrival = self._pairs.request(model, request_id, self._arrive) if request_id else self._arrive(None)
        self.seen += 1
        self.kept += arrival.kept
        return arrival

    def response(self, model: str, request_id: str) -> Arrival | None:
        """What a response shares with its request; None where that is not in the sample, or cannot be told."""
        arrival = self._pairs.response(model, request_id, self._arrive)
        return arrival if arrival is not None and arrival.kept else None

    def _arrive(self, pair: int | None) -> Arrival:
        draw = self._draw()
        return Arrival(draw < self._rate, draw, pair)


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
