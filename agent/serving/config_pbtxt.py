"""Reads a model's version policy from Triton's config.pbtxt, and nothing else of it.

The schema is a part of Triton's model_config.proto. Whatever else the file holds is passed over by its brackets: the
parser cannot pass over lists of messages that it does not know (`input [ { ... } ]`), which every such file has.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from agent.serving.versions import VersionPolicy

CONFIG_FILE = "config.pbtxt"
_LARGEST = 1 << 20
_PACKAGE = "reluscope.triton"
_FIELD = "version_policy"
_CLOSING = {"{": "}", "<": ">", "[": "]"}
# A comment, a string, a word, a bracket, or a quote that opens a string without end. Possessive: nothing backtracks.
_TOKEN = re.compile(r"""#[^\n]*+|"(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+'|[^\W]++|[{}<>\[\]'"]""")


class ConfigError(ValueError):
    """A config.pbtxt that cannot be read, and why."""


def read_policy(path: Path) -> VersionPolicy | None:
    """The file's version policy; None where it states none. Raises ConfigError, OSError where there is no file."""
    with path.open("rb") as file:
        raw = file.read(_LARGEST + 1)
    if len(raw) > _LARGEST:
        raise ConfigError(f"{path}: more than {_LARGEST} bytes")
    config = _model_config()()
    try:
        text_format.Parse(_policy_text(raw.decode()), config, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not protobuf text: {error}") from error
    policy = config.version_policy
    chosen = policy.WhichOneof("policy_choice")
    if chosen == "latest":
        return VersionPolicy("latest", latest=max(1, policy.latest.num_versions))
    if chosen == "specific":
        return VersionPolicy("specific", specific=tuple(str(version) for version in policy.specific.versions))
    return VersionPolicy("all") if chosen == "all" else None


def _policy_text(text: str) -> str:
    """The version_policy fields at the top level of the text; raises ParseError where its brackets do not match."""
    open_brackets: list[str] = []
    parts, start = [], None
    for token in _TOKEN.finditer(text):
        kind = token[0]
        if kind in _CLOSING:
            open_brackets.append(_CLOSING[kind])
        elif kind in _CLOSING.values():
            if not open_brackets or open_brackets.pop() != kind:
                raise text_format.ParseError(f"a {kind!r} without its beginning")
            if start is not None and not open_brackets:
                parts.append(text[start : token.end()])
                start = None
        elif kind in ("'", '"'):
            raise text_format.ParseError("a string without its end")
        elif not open_brackets and kind[0] not in "#\"'":
            start = token.start() if kind == _FIELD else None
    if open_brackets:
        raise text_format.ParseError(f"no {open_brackets[-1]!r} at the end")
    return "\n".join(parts)


@cache
def _model_config() -> Any:
    """The message ModelConfig, with its version_policy."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="reluscope/triton.proto", package=_PACKAGE, syntax="proto3")
    config = file.message_type.add(name="ModelConfig")
    policy = file.message_type.add(name="ModelVersionPolicy")
    policy.oneof_decl.add(name="policy_choice")
    _add(config, "version_policy", 3, "ModelVersionPolicy")
    for number, (name, kind) in enumerate((("latest", "Latest"), ("all", "All"), ("specific", "Specific")), start=1):
        policy.nested_type.add(name=kind)
        _add(policy, name, number, f"ModelVersionPolicy.{kind}").oneof_index = 0
    latest, _, specific = policy.nested_type
    latest.field.add(name="num_versions", number=1, type=field.TYPE_UINT32, label=field.LABEL_OPTIONAL)
    specific.field.add(name="versions", number=1, type=field.TYPE_INT64, label=field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ModelConfig"))


def _add(message: Any, name: str, number: int, kind: str) -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    return message.field.add(
        name=name, number=number, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL, type_name=f".{_PACKAGE}.{kind}"
    )
