"""Requests of the Open Inference Protocol: what is read, and every way in which one can be wrong."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
import traceback
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

from agent.datatypes import NUMPY
from agent.intake.oip import parse_request
from agent.intake.tensors import OipError, TensorSpec
from agent.intake.unpacking import Limits, decompress

X = TensorSpec("x", "FP32", (-1, 3))
FLAGS = TensorSpec("flags", "BOOL", (-1,))
VALUES = np.array([[1.5, -2.0, 0.0], [4.0, 5.0, 6.0]], np.float32)


def as_json(**changes: Any) -> bytes:
    """One good input `x`, with changes; a change to `...` leaves the key out."""
    entry = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": VALUES.ravel().tolist()} | changes
    return json.dumps(
        {"id": "7", "inputs": [{key: value for key, value in entry.items() if value is not ...}]}
    ).encode()


def as_binary(raw: bytes = VALUES.tobytes(), **changes: Any) -> tuple[bytes, int]:
    head = as_json(**{"data": ..., "parameters": {"binary_data_size": len(raw)}} | changes)
    return head + raw, len(head)


def refused(body: bytes, header_length: int | None = None, *specs: TensorSpec, **options: Any) -> OipError:
    with pytest.raises(OipError) as caught:
        parse_request(body, header_length, specs or (X,), **options)
    assert len(caught.value.message) < 400
    return caught.value


class TestGoodRequests:
    def test_flat_json(self) -> None:
        request = parse_request(as_json(), None, [X])
        assert request.id == "7"
        assert request.inputs["x"].dtype == np.float32
        np.testing.assert_array_equal(request.inputs["x"], VALUES)

    def test_nested_json(self) -> None:
        np.testing.assert_array_equal(parse_request(as_json(data=VALUES.tolist()), None, [X]).inputs["x"], VALUES)

    def test_json_with_white_space_around(self) -> None:
        assert parse_request(b"\n " + as_json() + b"\r\n", None, [X]).id == "7"

    def test_integers_are_floats_too(self) -> None:
        request = parse_request(as_json(data=[1, 2, 3, 4, 5, 6.5]), None, [X])
        np.testing.assert_array_equal(request.inputs["x"].ravel(), [1, 2, 3, 4, 5, 6.5])

    def test_beyond_float32_is_infinite(self) -> None:
        assert np.isinf(parse_request(as_json(data=[1e300] * 6), None, [X]).inputs["x"]).all()

    @pytest.mark.parametrize("given", [True, False])
    def test_binary_with_and_without_the_header(self, given: bool) -> None:
        body, length = as_binary()
        request = parse_request(body, length if given else None, [X])
        np.testing.assert_array_equal(request.inputs["x"], VALUES)

    def test_end_of_json_is_found_past_braces_in_strings_and_in_the_data(self) -> None:
        raw = np.frombuffer(b'{"}}' * 6, np.float32).tobytes()
        head = json.dumps(
            {
                "id": 'a "} \\',
                "parameters": {"é{": "}"},
                "inputs": [
                    {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": len(raw)}}
                ],
            },
            ensure_ascii=False,
        ).encode()
        request = parse_request(head + raw, None, [X])
        assert request.id == 'a "} \\'
        assert request.inputs["x"].tobytes() == raw

    def test_json_and_binary_inputs_mixed(self) -> None:
        raw = b"\x00\x02\x01"
        head = json.dumps(
            {
                "inputs": [
                    {"name": "flags", "datatype": "BOOL", "shape": [3], "parameters": {"binary_data_size": 3}},
                    {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]},
                ]
            }
        ).encode()
        request = parse_request(head + raw, len(head), [X, FLAGS])
        assert request.id is None
        assert request.inputs["flags"].tolist() == [False, True, True]
        assert request.inputs["x"].tolist() == [[1, 2, 3]]

    @pytest.mark.parametrize("datatype", sorted(NUMPY))
    def test_every_datatype_both_ways(self, datatype: str) -> None:
        spec = TensorSpec("x", datatype, (2, 2))
        values = np.array([[0, 1], [1, 0]]).astype(NUMPY[datatype])
        raw, length = as_binary(values.tobytes(), datatype=datatype, shape=[2, 2])
        text = as_json(datatype=datatype, shape=[2, 2], data=values.tolist())
        for got in (parse_request(raw, length, [spec]), parse_request(text, None, [spec])):
            assert got.inputs["x"].dtype == NUMPY[datatype]
            np.testing.assert_array_equal(got.inputs["x"], values)

    def test_64_bit_integers_are_exact(self) -> None:
        spec = TensorSpec("x", "UINT64", (2,))
        request = parse_request(as_json(datatype="UINT64", shape=[2], data=[1, 2**64 - 1]), None, [spec])
        assert request.inputs["x"].tolist() == [1, 2**64 - 1]

    @pytest.mark.parametrize(
        ("declared", "got"), [((-1, 3), (2, 3)), ((2, 3), (2, 3)), ((-1, -1), (1, 6)), ((6, -1), (6, 1))]
    )
    def test_raw_tensor_of_a_model_with_one_input(self, declared: tuple[int, ...], got: tuple[int, ...]) -> None:
        request = parse_request(VALUES.tobytes(), 0, [TensorSpec("x", "FP32", declared)])
        assert request.inputs["x"].shape == got
        assert request.inputs["x"].tobytes() == VALUES.tobytes()

    @pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
    def test_compressed(self, encoding: str, compress: Any) -> None:
        body, length = as_binary()
        request = parse_request(compress(body), length, [X], encoding=encoding)
        np.testing.assert_array_equal(request.inputs["x"], VALUES)


class TestTensorsThatDoNotFit:
    @pytest.mark.parametrize(
        ("changes", "reason", "says"),
        [
            ({"name": "y"}, "unknown_input", "a name that the model has not; it has ['x']"),
            ({"name": 3}, "bad_request", "name"),
            ({"datatype": "FP64"}, "datatype", "FP64, the model FP32"),
            ({"datatype": None}, "datatype", "none that is known"),
            ({"datatype": "BYTES", "data": ["a"] * 6}, "bytes_tensor", "BYTES"),
            ({"shape": [2, 4]}, "shape", "[2, 4], the model [-1, 3]"),
            ({"shape": [6]}, "shape", "[6]"),
            ({"shape": [0, 3], "data": []}, "shape", "[0, 3]"),
            ({"shape": [-2, 3]}, "shape", "[-2, 3]"),
            ({"shape": [True, 3]}, "shape", "integers"),
            ({"shape": [2.0, 3]}, "shape", "integers"),
            ({"shape": "2,3"}, "shape", "integers"),
            ({"shape": ...}, "shape", "integers"),
            ({"shape": [1] * 100_000}, "shape", "[1, 1, 1, 1, 1, 1, 1, 1, ...], the model"),
            ({"shape": [987654321987, 4]}, "shape", "[..., 4], the model"),
            ({"shape": [10**18, 3]}, "too_large", "elements"),
            ({"data": [1.0] * 5}, "data", "5 elements, its shape takes 6"),
            ({"data": ...}, "data", "neither"),
            ({"data": 5}, "data", "neither"),
            ({"data": ["1"] * 6}, "data", "holds str"),
            ({"data": [None] * 6}, "data", "holds NoneType"),
            ({"data": [True] * 6}, "data", "holds bool"),
            ({"data": [[1, 2, 3], [4, 5]]}, "data", "nesting"),
            ({"data": [[1, 2, 3], 4, 5, 6]}, "data", "nesting"),
            ({"data": [[[1, 2, 3], [4, 5, 6]]]}, "data", "nesting"),
            ({"data": [[1, 2, [3]], [4, 5, 6]]}, "data", "holds list"),
            ({"parameters": 5}, "bad_request", "parameters"),
            ({"parameters": {"binary_data_size": -4}}, "bad_request", "no size"),
            ({"parameters": {"binary_data_size": 24}}, "bad_request", "both"),
            ({"data": ..., "parameters": {"shared_memory_region": "r"}}, "shared_memory", "shared memory"),
        ],
    )
    def test_one_input(self, changes: dict[str, Any], reason: str, says: str) -> None:
        error = refused(as_json(**changes))
        assert error.reason == reason
        assert says in error.message

    @pytest.mark.parametrize(
        ("datatype", "value", "says"),
        [
            ("INT8", 300, "beyond INT8"),
            ("UINT8", -1, "beyond UINT8"),
            ("INT32", 1.5, "holds float"),
            ("BOOL", 1, "holds int"),
            ("INT64", 2**63, "beyond INT64"),
        ],
    )
    def test_values_beyond_the_datatype(self, datatype: str, value: Any, says: str) -> None:
        error = refused(as_json(datatype=datatype, shape=[1], data=[value]), None, TensorSpec("x", datatype, (1,)))
        assert error.reason == "data"
        assert says in error.message

    def test_missing_and_repeated_inputs(self) -> None:
        assert refused(as_json(), None, X, FLAGS).reason == "missing_input"
        twice = json.loads(as_json())
        twice["inputs"] *= 2
        assert "twice" in refused(json.dumps(twice).encode()).message

    def test_a_model_that_takes_strings(self) -> None:
        assert refused(as_json(), None, TensorSpec("x", "BYTES", (-1, 3))).reason == "bytes_tensor"

    def test_a_datatype_without_numpy_type(self) -> None:
        error = refused(as_json(datatype="BF16"), None, TensorSpec("x", "BF16", (-1, 3)))
        assert (error.reason, "not supported" in error.message) == ("datatype", True)


WORD, NUMBER = "kanarienvogel", 98_765_432_101


@pytest.mark.parametrize(
    "changes",
    [
        {"name": WORD},
        {"datatype": WORD},
        {"datatype": NUMBER},
        {"datatype": [WORD]},
        {"shape": [NUMBER, 4]},
        {"shape": [1, NUMBER]},
        {"shape": [NUMBER]},
        {"shape": WORD},
        {"data": [NUMBER]},
        {"data": [-NUMBER]},
        {"data": [WORD]},
        {"data": WORD},
        {"data": {WORD: NUMBER}},
        {"parameters": {"binary_data_size": NUMBER}, "data": ...},
        {"parameters": {"binary_data_size": WORD}, "data": ...},
        {"parameters": WORD},
    ],
)
def test_no_message_quotes_the_request(changes: dict[str, Any]) -> None:
    spec = TensorSpec("x", "INT32", (1,))
    error = refused(as_json(**({"datatype": "INT32", "shape": [1], "data": [1]} | changes)), None, spec)
    told = "".join(traceback.format_exception(error))
    assert WORD not in told
    assert str(NUMBER) not in told


@pytest.mark.parametrize(
    ("body", "length", "encoding"),
    [
        (f'{{"inputs": {WORD}}}'.encode(), None, None),
        (f'["{WORD}", {NUMBER}]'.encode(), 30, None),
        (f'{{"id": {NUMBER}, "inputs": []}}'.encode(), None, None),
        (as_json(), NUMBER, None),
        (gzip.compress(WORD.encode()) + WORD.encode(), None, "gzip"),
        (WORD.encode(), None, "deflate"),
        (WORD.encode(), None, WORD),
        (f'{{"{WORD}": "\\ud800"}}'.encode(), None, None),
    ],
)
def test_no_message_quotes_the_body(body: bytes, length: int | None, encoding: str | None) -> None:
    told = "".join(traceback.format_exception(refused(body, length, encoding=encoding)))
    assert WORD not in told
    assert str(NUMBER) not in told


class TestBrokenBinary:
    def test_truncated(self) -> None:
        body, length = as_binary()
        for given in (length, None):
            error = refused(body[:-1], given)
            assert (error.reason, "23 left" in error.message) == ("binary_size", True)

    def test_followed_by_more(self) -> None:
        body, length = as_binary()
        assert "1 bytes follow" in refused(body + b"\x00", length).message

    def test_size_unlike_the_shape(self) -> None:
        body, length = as_binary(shape=[3, 3])
        assert "its shape takes 36" in refused(body, length).message

    @pytest.mark.parametrize("length", [10**9, -1])
    def test_header_beyond_the_body(self, length: int) -> None:
        assert refused(as_json(), length).reason == "bad_header"

    def test_header_that_cuts_the_json(self) -> None:
        assert refused(as_json(), 20).reason == "bad_json"

    def test_raw_tensor(self) -> None:
        assert refused(b"12345", 0).reason == "binary_size"
        assert refused(b"", 0).reason == "binary_size"
        assert "one input" in refused(VALUES.tobytes(), 0, X, FLAGS).message
        assert refused(VALUES.tobytes(), 0, TensorSpec("x", "FP32", (-1, -1, -1))).reason == "shape"
        assert refused(VALUES.tobytes(), 0, limits=Limits(max_elements=5)).reason == "too_large"


class TestBombs:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"not json",
            b"[1]",
            b'"text"',
            b"{",
            b'{"inputs": [}',
            b'{"inputs": [NaN]}',
            b'{"id": "\xff"}',
            b'{"id": "open',
            b"}",
            b'{"a": 1',
        ],
    )
    def test_no_json(self, body: bytes) -> None:
        assert refused(body).reason == "bad_json"
        assert refused(body, len(body) or None).reason in ("bad_json", "bad_request")

    @pytest.mark.parametrize("body", [b"{}", b'{"inputs": {}}', b'{"inputs": []}', b'{"inputs": [3]}', b'{"id": 3}'])
    def test_no_request(self, body: bytes) -> None:
        assert refused(body).reason == "bad_request"

    def test_deep_nesting(self) -> None:
        for depth in (2_000, 60_000):
            body = b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}"
            assert refused(body).reason == "bad_json"
        objects = b'{"a":' * 60_000 + b"1" + b"}" * 60_000
        assert refused(objects).reason == "bad_json"

    def test_many_small_arrays_take_no_memory(self) -> None:
        body = b'{"inputs": [' + b"[]," * 1_000_000 + b"[]]}"
        tracemalloc.start()
        error = refused(body)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert error.reason == "too_large"
        assert peak < 1 << 20

    def test_long_string_beside_short_ones_takes_no_memory(self) -> None:
        body = as_json(shape=[1000, 3], data=["a" * 100_000] + ["b"] * 2999)
        assert refused(body).reason == "data"

    def test_open_string_of_quotes_is_scanned_once(self) -> None:
        body = b'{"id": "' + b'\\"' * 2_000_000
        start = time.perf_counter()
        assert refused(body).reason == "bad_json"
        assert time.perf_counter() - start < 2

    def test_limits(self) -> None:
        assert refused(as_json(), limits=Limits(max_body_bytes=50)).reason == "too_large"
        assert refused(as_json(), limits=Limits(max_json_bytes=50)).reason == "too_large"
        assert refused(as_json(), len(as_json()), limits=Limits(max_json_bytes=50)).reason == "too_large"
        assert refused(as_json(), limits=Limits(max_elements=5)).reason == "too_large"
        assert refused(as_json(), limits=Limits(max_json_containers=2)).reason == "too_large"

    def test_gzip_bomb(self) -> None:
        bomb = gzip.compress(bytes(200 << 20), 9)
        assert len(bomb) < 1 << 20
        tracemalloc.start()
        error = refused(bomb, encoding="gzip")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert error.reason == "too_large"
        assert peak < 3 * Limits().max_decompressed_bytes

    @pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "x" * 1000])
    def test_unknown_encoding(self, encoding: str) -> None:
        assert refused(as_json(), encoding=encoding[:100]).reason == "bad_encoding"

    def test_broken_streams(self) -> None:
        whole = gzip.compress(as_json())
        for body in (whole[:-9], whole + b"x", b"plain", b"", zlib.compress(as_json())):
            assert refused(body, encoding="gzip").reason == "bad_encoding"

    def test_decompressing_to_exactly_the_limit(self) -> None:
        assert len(decompress(gzip.compress(bytes(1000)), "gzip", 1000)) == 1000
        with pytest.raises(OipError):
            decompress(gzip.compress(bytes(1001)), "gzip", 1000)


def test_random_damage_never_raises_anything_else() -> None:
    random = np.random.default_rng(0)
    body, length = as_binary()
    for _ in range(3000):
        damaged = bytearray(body)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(damaged))] = random.integers(256)
        given = [length, None, 0, int(random.integers(len(body) + 5))][random.integers(4)]
        with contextlib.suppress(OipError):
            parse_request(bytes(damaged), given, [X])
