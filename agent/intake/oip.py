"""Open Inference Protocol v2 requests and responses, JSON and the binary tensor extension, to numpy arrays.

Everything in a request is hostile until checked: each size is bounded by `Limits` before memory is spent on it, and
whatever is wrong becomes an `OipError` whose `reason` is one of a few words and whose message names the tensor. It goes
to the log and back to the client, so it gives names that the model declares, shapes and types, and no value.
Protocol: https://github.com/kserve/open-inference-protocol (v2), Triton's binary tensor data extension.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson
from numpy.typing import NDArray

from agent.intake.tensors import (
    OipError,
    Reason,
    TensorSpec,
    binary_size,
    dtype_of,
    from_binary,
    from_json,
    shape_of,
)
from agent.intake.unpacking import DEFAULT_LIMITS, Limits, unpacked

# A string, a bracket, or a quote that opens a string without end. Possessive, so that no input makes it backtrack.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}]|"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request's id and its tensors, each of the shape and dtype that the model wants."""

    id: str | None
    inputs: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """What a server answered: its version, where it says so, and its tensors, each as the model declares it."""

    version: str | None
    outputs: dict[str, NDArray[Any]]


def parse_request(
    body: bytes,
    header_length: int | None,
    inputs: Sequence[TensorSpec],
    *,
    encoding: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> ParsedRequest:
    """Read a request as it came from the wire.

    Args:
        body: as received.
        header_length: length of the JSON part of the decompressed body (Inference-Header-Content-Length); None to find
            its end by scanning, 0 for the raw tensor of a model with one input.
        inputs: what the model declares.
        encoding: Content-Encoding of `body`: None, "identity", "gzip" or "deflate".
        limits: sizes beyond which a request is refused.

    Raises:
        OipError: in every case of bad input.
    """
    body = unpacked(body, encoding, limits)
    if header_length == 0:
        return ParsedRequest(None, _raw_input(body, inputs, limits))
    header_length = _json_length(body, header_length, limits)
    request = _load_json(body, header_length, limits)
    tensors = _tensors(request, body, header_length, inputs, limits)
    missing = sorted({spec.name for spec in inputs} - set(tensors))
    if missing:
        raise OipError("missing_input", f"the model also wants input {missing[0]!r}")
    return ParsedRequest(_request_id(request), tensors)


def parse_response(
    body: bytes,
    header_length: int | None,
    outputs: Sequence[TensorSpec],
    *,
    encoding: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> ParsedResponse:
    """Read a server's response, with the same care as a request.

    Args:
        body: as received.
        header_length: as for `parse_request`; a response always has a JSON part.
        outputs: what the model declares. A response may have some of them only: clients may ask for less.
        encoding: as for `parse_request`.
        limits: as for `parse_request`.

    Raises:
        OipError: in every case of bad input, and where there is no output at all.
    """
    body = unpacked(body, encoding, limits)
    header_length = _json_length(body, header_length, limits)
    response = _load_json(body, header_length, limits)
    version = response.get("model_version")
    if version is not None and not isinstance(version, str):
        raise OipError("bad_request", '"model_version" is no string')
    specs = [replace(spec, role="output") for spec in outputs]
    return ParsedResponse(version or None, _tensors(response, body, header_length, specs, limits, "output"))


def _json_length(body: bytes, header_length: int | None, limits: Limits) -> int:
    if header_length is None:
        return _end_of_json(body, limits)
    if not 0 <= header_length <= len(body):
        raise OipError("bad_header", f"the JSON part is said to be longer than the body, which has {len(body)} bytes")
    return header_length


def _end_of_json(body: bytes, limits: Limits) -> int:
    """Where the first JSON object ends: what follows is binary. Counts braces outside strings; builds nothing."""
    depth = 0
    for token in _TOKEN.finditer(body, 0, limits.max_json_bytes + 1):
        text = token[0]
        if text == b'"':
            break
        depth += 1 if text == b"{" else -1 if text == b"}" else 0
        if depth <= 0:
            if text == b"}":
                return token.end()
            break
    if len(body) > limits.max_json_bytes:
        raise OipError("too_large", f"no end of the JSON within {limits.max_json_bytes} bytes")
    raise OipError("bad_json", "the body does not begin with a complete JSON object")


def _load_json(body: bytes, length: int, limits: Limits) -> dict[str, Any]:
    if length > limits.max_json_bytes:
        raise OipError("too_large", f"the JSON has {length} bytes, more than {limits.max_json_bytes}")
    if body.count(b"[", 0, length) + body.count(b"{", 0, length) > limits.max_json_containers:
        raise OipError("too_large", f"the JSON has more than {limits.max_json_containers} arrays and objects")
    try:
        request = orjson.loads(memoryview(body)[:length])  # refuses nesting deeper than 1024 itself
    except orjson.JSONDecodeError as error:
        raise OipError("bad_json", f"not valid JSON at line {error.lineno}, column {error.colno}") from None
    if not isinstance(request, dict):
        raise OipError("bad_request", "the JSON is no object")
    return request


def _request_id(request: dict[str, Any]) -> str | None:
    value = request.get("id")
    if value is not None and not isinstance(value, str):
        raise OipError("bad_request", '"id" is no string')
    return value or None


def _tensors(
    message: dict[str, Any],
    body: bytes,
    offset: int,
    declared: Sequence[TensorSpec],
    limits: Limits,
    role: Literal["input", "output"] = "input",
) -> dict[str, NDArray[Any]]:
    """All tensors of a request or response; `offset` is where the binary part of the body begins."""
    entries = message.get(f"{role}s")
    if not isinstance(entries, list) or not entries:
        reason: Reason = "bad_request" if role == "input" else "missing_output"
        raise OipError(reason, f'"{role}s" is missing, empty or no array')
    specs = {spec.name: spec for spec in declared}
    tensors: dict[str, NDArray[Any]] = {}
    elements = 0
    for entry in entries:
        spec = _spec_of(entry, specs, role)
        if spec.name in tensors:
            raise OipError("bad_request", f"{role} {spec.name!r} is given twice")
        dtype = dtype_of(spec, entry.get("datatype"))
        shape = shape_of(spec, entry.get("shape"))
        elements += math.prod(shape)
        if elements > limits.max_elements:
            raise OipError("too_large", f"the {role}s have more than {limits.max_elements} elements")
        size = binary_size(spec, entry)
        if size is None:
            tensors[spec.name] = from_json(spec, entry.get("data"), dtype, shape)
        else:
            tensors[spec.name] = from_binary(spec, body[offset : offset + size], size, dtype, shape)
            offset += size
    if body[offset:].strip():
        raise OipError("binary_size", f"{len(body) - offset} bytes follow the last tensor")
    return tensors


def _spec_of(entry: Any, specs: dict[str, TensorSpec], role: Literal["input", "output"]) -> TensorSpec:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise OipError("bad_request", f"an {role} is no object with a name")
    spec = specs.get(entry["name"])
    if spec is None:
        reason: Reason = "unknown_input" if role == "input" else "unknown_output"
        raise OipError(reason, f"an {role} has a name that the model has not; it has {sorted(specs)}")
    return spec


def _raw_input(body: bytes, inputs: Sequence[TensorSpec], limits: Limits) -> dict[str, NDArray[Any]]:
    """The whole body is one tensor. Its shape: one free dimension follows from the size; of two, the first is 1."""
    if len(inputs) != 1:
        raise OipError("bad_header", f"a body without JSON needs a model with one input; this has {len(inputs)}")
    spec = inputs[0]
    dtype = dtype_of(spec, spec.datatype)
    free = [axis for axis, size in enumerate(spec.shape) if size == -1]
    if len(free) > 2:
        raise OipError("shape", f"input {spec.name!r}: its shape {list(spec.shape)} does not follow from the size")
    shape = list(spec.shape)
    if len(free) == 2:
        shape[free[0]] = 1
    if free:
        shape[free[-1]] = 1
        shape[free[-1]] = max(1, len(body) // (math.prod(shape) * dtype.itemsize))
    if math.prod(shape) > limits.max_elements:
        raise OipError("too_large", f"the input has more than {limits.max_elements} elements")
    return {spec.name: from_binary(spec, body, len(body), dtype, tuple(shape))}
