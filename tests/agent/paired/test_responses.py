"""Requests and responses find each other in either order, within bounds; responses are read with equal care."""

from __future__ import annotations

import gzip

import numpy as np
import orjson
import pytest

from agent.intake.oip import parse_response
from agent.intake.tensors import OipError, TensorSpec
from agent.intake.unpacking import Limits
from agent.paired.responses import Joiner
from agent.rates.sampling import id_of_response

SPECS = (TensorSpec("p", "FP32", (-1, 3)), TensorSpec("label", "INT64", (-1,)))
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Table:
    """A joiner of strings, its clock, and what it dropped."""

    def __init__(self, max_bytes: int = 100, max_seconds: float = 10.0) -> None:
        self.clock = Clock()
        self.dropped: list[str] = []
        self.joiner: Joiner[str, str] = Joiner(max_bytes, max_seconds, self.dropped.append, self.clock)


def test_either_order_joins() -> None:
    table = Table()
    assert table.joiner.request(1, "request 1", 40) is None
    assert table.joiner.response(2, "response 2", 40) is None
    assert table.joiner.depth() == (2, 80)
    assert table.joiner.response(1, "response 1", 99) == ("request 1", "response 1")
    assert table.joiner.request(2, "request 2", 99) == ("request 2", "response 2")
    assert table.joiner.depth() == (0, 0)
    assert table.dropped == []


def test_what_waits_too_long_is_dropped_with_its_reason() -> None:
    table = Table()
    table.joiner.request(1, "request", 10)
    table.clock.now += 5
    table.joiner.response(2, "response", 10)
    table.clock.now += 5
    table.joiner.expire()
    assert table.dropped == ["response_missing"]
    assert table.joiner.response(1, "late", 10) is None
    table.clock.now += 20
    table.joiner.expire()
    assert table.dropped == ["response_missing", "request_missing", "request_missing"]
    assert table.joiner.depth() == (0, 0)


def test_bytes_are_bounded_and_the_new_is_dropped() -> None:
    table = Table(max_bytes=100)
    table.joiner.request(1, "request", 60)
    table.joiner.request(2, "request", 60)
    assert table.dropped == ["join_full"]
    assert table.joiner.depth() == (1, 60)
    assert table.joiner.response(1, "response", 1000) is not None, "a pair needs no room in the table"


def test_items_are_bounded() -> None:
    table = Table(max_bytes=1 << 30)
    for number in range(5000):
        table.joiner.request(number, "request", 0)
    assert table.joiner.depth()[0] == 4096
    assert table.dropped == ["join_full"] * (5000 - 4096)


def test_a_second_one_of_the_same_id_is_dropped() -> None:
    table = Table()
    table.joiner.response(1, "first", 10)
    table.joiner.response(1, "second", 10)
    assert table.dropped == ["join_duplicate"]
    assert table.joiner.request(1, "request", 10) == ("request", "first")


def response(**changes: object) -> bytes:
    entry = {"name": "p", "datatype": "FP32", "shape": [2, 3], "data": VALUES.ravel().tolist()} | changes
    return orjson.dumps({"model_name": "digits", "model_version": "2", "id": "a", "outputs": [entry]})


def test_a_response_is_read() -> None:
    got = parse_response(response(), None, SPECS)
    assert got.version == "2"
    assert list(got.outputs) == ["p"], "a client may ask for some outputs only"
    np.testing.assert_array_equal(got.outputs["p"], VALUES)
    packed = parse_response(gzip.compress(response()), None, SPECS, encoding="gzip")
    np.testing.assert_array_equal(packed.outputs["p"], VALUES)


def test_a_binary_response_is_read() -> None:
    entry = {"name": "p", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    head = orjson.dumps({"outputs": [entry]})
    got = parse_response(head + VALUES.tobytes(), len(head), SPECS)
    assert got.version is None
    np.testing.assert_array_equal(got.outputs["p"], VALUES)


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        (b"{", "bad_json", "does not begin with a complete JSON object"),
        (b'{"outputs": []}', "missing_output", '"outputs" is missing, empty'),
        (b'{"error": "no such model"}', "missing_output", '"outputs" is missing, empty'),
        (b'{"model_version": 2, "outputs": []}', "bad_request", '"model_version" is no string'),
        (response(name="q"), "unknown_output", "an output has a name that the model has not"),
        (response(datatype="FP64"), "datatype", "output 'p' has datatype FP64, the model FP32"),
        (response(shape=[2, 4]), "shape", "output 'p' has shape"),
        (response(data=[1, 2]), "data", "output 'p' has 2 elements"),
        (response(parameters={"binary_data_size": 24}), "bad_request", "output 'p' has both"),
    ],
)
def test_a_bad_response_is_named(body: bytes, reason: str, message: str) -> None:
    with pytest.raises(OipError) as caught:
        parse_response(body, None, SPECS)
    assert caught.value.reason == reason
    assert message in caught.value.message


def test_responses_have_the_limits_of_requests() -> None:
    with pytest.raises(OipError, match="more than 10"):
        parse_response(response(), None, SPECS, limits=Limits(max_body_bytes=10))
    with pytest.raises(OipError, match="the outputs have more than 5 elements"):
        parse_response(response(), None, SPECS, limits=Limits(max_elements=5))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"id": "a", "outputs": []}', "a"),
        (b'{"model_name":"digits","model_version":"2","id":"a b\\"c","outputs":[]}', 'a b"c'),
        (b'{"model_name": "x", "time": -1.5e3, "cached": true, "parameters": null, "id": "a"}', "a"),
        (b'{"idx": "no", "id": "yes"}', "yes"),
        (b'{"id": ""}', None),
        (b'{"id": 7}', None),
        (b'{"parameters": {"id": "inner"}, "id": "outer"}', None),
        (b'{"outputs": [], "id": "late"}', None),
        (b'{"model_name": "x"}', None),
        (b"", None),
        (b"\x00\x01", None),
        (b'{"a": "' + b"x" * 2000 + b'", "id": "beyond the first kilobyte"}', None),
    ],
)
def test_the_id_of_a_response(body: bytes, expected: str | None) -> None:
    assert id_of_response(body) == expected
