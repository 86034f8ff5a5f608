"""Looks for planted values in all that a pod lets out: bytes, texts, and every number that they decode to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

WORD = "kanarienvogel"
"""Part of every planted text."""
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_DIGITS = 6
"""Significant digits from which on a number in a text tells which value it was."""
_PRECISION = 1e-9
"""Planted floats have single precision; what is told in double and is one of them agrees far better than chance."""


class Canaries:
    """What was planted, and where it was found again: lines "place: what"."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._rows: list[NDArray[np.float32]] = []
        self._told: list[float] = []
        self._derived: list[float] = []
        self._integers: set[int] = set()

    def plant(self, row: NDArray[np.float32]) -> None:
        """Floats of one request as they are sent, other than zero and one."""
        self._rows.append(row)
        self._told.extend(float(value) for value in row.ravel() if np.isfinite(value) and value not in (0, 1))

    def plant_derived(self, values: Iterable[float]) -> None:
        """What the model makes of one request: its activations and outputs."""
        self._derived.extend(float(value) for value in values if math.isfinite(value) and value != 0)

    def plant_integer(self, value: int) -> int:
        """An integer that is in no count and no time."""
        self._integers.add(value)
        return value

    def raw(self, place: str, data: bytes) -> None:
        """Searches bytes: texts, decimals, doubles, and requests' floats in a row."""
        if WORD.encode() in data.lower():
            self._find(place, "a planted text")
        for row in self._rows:
            if row.tobytes() in data:
                self._find(place, "a request's tensor")
        for value in self._told:
            if np.float64(value).tobytes() in data:
                self._find(place, f"the double {value!r}")
        for number in self._integers:
            if str(number).encode() in data:
                self._find(place, f"the digits of {number}")

    def text(self, place: str, text: str) -> None:
        """Searches a text, and the numbers in it that have enough digits to tell."""
        if WORD in text.lower():
            at = text.lower().index(WORD)
            self._find(place, f"a planted text in {text[max(0, at - 60) : at + 60]!r}")
        planted = np.sort(np.abs(self._told))
        for token in set(_NUMBER.findall(text)):
            number = Decimal(token)
            if number == number.to_integral_value() and abs(int(number)) in self._integers:
                self._find(place, f"the integer {token}")
            parts = number.as_tuple()
            if len(parts.digits) >= _DIGITS and isinstance(parts.exponent, int):
                unit = 10.0**parts.exponent / 2
                if np.abs(planted - abs(float(number))).min(initial=np.inf) <= unit * 1.001:
                    self._find(place, f"the number {token}")

    def numbers(self, place: str, values: Iterable[float]) -> None:
        """Looks whether one of the values is a planted number, or one that the model made of a single request."""
        planted = np.sort(np.array([*self._told, *self._derived]))
        told = np.array([value for value in values if math.isfinite(value) and value != 0], np.float64)
        if not len(told) or not len(planted):
            return
        at = np.searchsorted(planted, told)
        near = np.stack([planted[np.maximum(at - 1, 0)], planted[np.minimum(at, len(planted) - 1)]])
        hit = (np.abs(near - told) <= _PRECISION * np.abs(told)).any(axis=0)
        for value in told[hit]:
            self._find(place, f"the number {value!r}")

    def message(self, place: str, message: Message) -> None:
        """Searches every field of a message, however deep, and what its sums let one work out."""
        for field, value in message.ListFields():
            many = value if field.is_repeated else [value]
            if field.message_type is not None:
                for one in many:
                    self.message(f"{place}.{field.name}", one)
            else:
                self.value(f"{place}.{field.name}", list(many))
        names = {field.name for field in message.DESCRIPTOR.fields}
        if {"mean", "m2", "nonfinite"} <= names:
            self.summary(place, {name: getattr(message, name) for name in ("n", "nonfinite", "mean", "m2")})

    def summary(self, place: str, row: Mapping[str, Any]) -> None:
        """What a summary lets one work out: the only value among zeros, from the sum and from the squares."""
        n = np.maximum(row["n"] - np.asarray(row["nonfinite"], np.float64), 1)
        mean, m2 = np.asarray(row["mean"], np.float64), np.asarray(row["m2"], np.float64)
        self.numbers(f"{place}, mean times requests", mean * n)
        self.numbers(f"{place}, root of m2", np.sqrt(m2 / np.maximum(1 - 1 / n, 1e-300)))

    def value(self, place: str, value: Any) -> None:
        """Searches anything that a row of a table or JSON may hold."""
        match value:
            case bool() | None | datetime():
                return
            case int():
                if abs(value) in self._integers:
                    self._find(place, f"the integer {value}")
            case float():
                self.numbers(place, [value])
            case str():
                self.text(place, value)
            case bytes():
                self.raw(place, value)
            case Mapping():
                for key, item in value.items():
                    self.value(f"{place}.{key}", item)
            case Sequence():
                self.numbers(place, [item for item in value if isinstance(item, float)])
                for item in value:
                    if not isinstance(item, float):
                        self.value(place, item)
            case _:
                self.text(place, json.dumps(value, default=str))

    def _find(self, place: str, what: str) -> None:
        self.found.append(f"{place}: {what}")
