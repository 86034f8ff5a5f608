"""Which versions are followed: the server's answer, the configuration, config.pbtxt, else the highest."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.serving.config_pbtxt import ConfigError, read_policy
from agent.serving.following import Following
from agent.serving.versions import Chosen, ServerAnswer, VersionPolicy, choose

THERE = ["1", "2", "9", "10"]

REAL = """
name: "digits"  # as people write them
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "image", data_type: TYPE_FP32, dims: [ 1, 8, 8 ] }
]
output [ { name: "p" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "labels.txt" } ]
instance_group [ { count: 2, kind: KIND_GPU, gpus: [ 0, 1 ] } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
optimization { execution_accelerators { gpu_execution_accelerator : [ { name : "tensorrt"
  parameters { key: "precision_mode" value: "FP16" } } ] } }
parameters: { key: "x" value: { string_value: "version_policy: { all { } }" } }
%s
"""


def policy_of(tmp_path: Path, text: str) -> VersionPolicy | None:
    path = tmp_path / "config.pbtxt"
    path.write_text(text)
    return read_policy(path)


@pytest.mark.parametrize(
    ("stated", "versions"),
    [
        ("version_policy: { latest: { num_versions: 2 } }", ("9", "10")),
        ("version_policy { latest { num_versions : 2 } }", ("9", "10")),
        ("version_policy: { latest: {} }", ("10",)),
        ("version_policy: { all: {} }", ("1", "2", "9", "10")),
        ("version_policy: { all { } }", ("1", "2", "9", "10")),
        ("version_policy: { specific: { versions: [1, 9] } }", ("1", "9")),
        ("version_policy: { specific { versions: 2 versions: 77 } }", ("2",)),
        ("version_policy: < specific: < versions: [ 0x0a ] > >;", ("10",)),
        ("version_policy { }", None),
        ("", None),
    ],
)
def test_tritons_version_policy(tmp_path: Path, stated: str, versions: tuple[str, ...] | None) -> None:
    policy = policy_of(tmp_path, REAL % stated)
    assert (policy and policy.choose(THERE)) == versions


@pytest.mark.parametrize(
    "text",
    [
        "version_policy: { latest: ",
        "version_policy: { latest { num_versions: many } }",
        "version_policy: { latest {} ]",
        "version_policy: 5 { all {} }}",
        'name: "digits',
        "version_policy { all {} } version_policy { latest {} }",
        "{" * 5000,
    ],
)
def test_what_is_no_protobuf_text_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config.pbtxt: not protobuf text"):
        policy_of(tmp_path, text)


def test_bytes_and_sizes_that_no_configuration_has(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not protobuf text"):
        read_policy(path)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="more than"):
        read_policy(path)
    with pytest.raises(FileNotFoundError):
        read_policy(tmp_path / "none")


def test_the_order_of_who_is_believed() -> None:
    answer = ServerAnswer({"m": ("2", "1")})
    configured, policy = {"m": ("9", "1")}, VersionPolicy("latest", 2)
    assert choose("m", THERE, 2) == Chosen(("10",), None, "highest")
    assert choose("m", THERE, 2, policy=policy) == Chosen(("9", "10"), None, "policy")
    assert choose("m", THERE, 2, configured=configured, policy=policy) == Chosen(("1", "9"), None, "configuration")
    told = choose("m", THERE, 2, answer=answer, configured=configured, policy=policy)
    assert told == Chosen(("1", "2"), "2", "server")
    assert choose("other", THERE, 2, answer=answer, configured=configured).source == "highest"


def test_no_more_versions_than_may_be_observed_and_what_is_missing_is_named() -> None:
    assert choose("m", THERE, 2, policy=VersionPolicy("all")) == Chosen(("9", "10"), None, "policy", (), ("1", "2"))
    answer = ServerAnswer({"m": ("2", "11")})
    assert choose("m", THERE, 2, answer=answer) == Chosen(("2",), "11", "server", ("11",))
    assert choose("m", THERE, 2, answer=ServerAnswer({"m": ()})) == Chosen((), None, "server")
    specific = VersionPolicy("specific", specific=("3", "9"))
    assert choose("m", THERE, 2, policy=specific) == Chosen(("9",), None, "policy", ("3",))


def test_a_policy_is_read_when_it_changes_and_the_last_good_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m" / "config.pbtxt"
    path.parent.mkdir()
    following = Following(tmp_path, 3)
    with capture_logs() as logs:
        assert following.choose({"m": THERE}) == {"m": ("10",)}
        path.write_text("version_policy { latest { num_versions: 2 } }")
        assert following.choose({"m": THERE}) == {"m": ("9", "10")}
        path.write_text("version_policy { lat")
        for _ in range(3):
            assert following.choose({"m": THERE}) == {"m": ("9", "10")}
        path.write_text("version_policy { specific { versions: [1, 5] } }")
        assert following.choose({"m": THERE}) == {"m": ("1",)}
        path.unlink()
        assert following.choose({"m": THERE}) == {"m": ("10",)}
        assert following.choose({}) == {}
    assert [(one["event"], one.get("source")) for one in logs] == [
        ("versions.followed", "policy"),
        ("policy.unreadable", None),
        ("versions.followed", "policy"),
        ("versions.missing", "policy"),
        ("versions.followed", "highest"),
    ], "each once"
