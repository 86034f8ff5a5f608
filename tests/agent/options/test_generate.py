"""A settings class is all that an option takes: line, environment, help and errors follow from its fields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner, Result
from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.options import INTERNAL, MIB, SECTION, Option, options
from agent.service import command as agent_command
from detector.ingestion.dead_letters import command as dead_letters_command
from detector.migrate import command as migrate_command
from detector.planning.command import command as plan_command
from detector.references.command import command as reference_command
from detector.report.command import command as report_command
from detector.service import command as detector_command

COMMANDS = (
    *(agent_command, detector_command, migrate_command, dead_letters_command, plan_command, report_command),
    *reference_command.commands.values(),
)


@dataclass(frozen=True, config=SECTION)
class Cache:
    size: Annotated[int, Option("cache_mib", unit=MIB)] = Field(default=64 * MIB, ge=1)
    """Memory for answers."""
    clock: Annotated[Callable[[], float] | None, INTERNAL] = None


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Sample:
    folder: Path
    """Where to look."""
    rate: float = Field(default=0.5, gt=0, lt=1)
    """How often."""
    mode: Literal["fast", "sure"] = "fast"
    """How."""
    names: Annotated[tuple[str, ...], Option(multiple=True)] = ()
    """Of whom."""
    limit: Annotated[int | None, Field(ge=1), Option(default="no limit")] = None
    """How many."""
    token: Annotated[str, Option(envvar="SHARED_TOKEN")] = ""
    """Of all commands."""
    again: bool = False
    """Once more."""
    cache: Cache

    def __post_init__(self) -> None:
        if self.again and self.mode == "fast":
            raise ValueError("--again takes --mode sure")


def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[Result, Sample | None]:
    found: list[Sample] = []

    @click.command(context_settings={"auto_envvar_prefix": "TOOL_RUN"})
    @click.option("--other", default=1)
    @options(Sample)
    def command(settings: Sample, other: int) -> None:
        """A command."""
        assert other == 1
        found.append(settings)

    result = CliRunner().invoke(command, arguments, env=env)
    return result, found[0] if found else None


def test_the_line_goes_before_the_environment_and_that_before_the_default() -> None:
    env = {"TOOL_RUN_FOLDER": "/b", "TOOL_RUN_RATE": "0.25", "TOOL_RUN_CACHE_MIB": "3", "TOOL_RUN_MODE": ""}
    _, got = run("--folder", "/a", env=env)
    assert got == Sample(folder=Path("/a"), rate=0.25, mode="fast", cache=Cache(3 * MIB))


def test_every_kind_of_value_arrives() -> None:
    line = "--folder a --rate .1 --mode sure --names a --names b --limit 3 --again --cache-mib 2 --token t"
    _, got = run(*line.split())
    assert got == Sample(
        folder=Path("a"), rate=0.1, mode="sure", names=("a", "b"), limit=3, token="t", again=True, cache=Cache(2 * MIB)
    )


def test_a_variable_may_be_shared_by_all_commands_and_no_other_is_read_for_it() -> None:
    _, got = run("--folder", "a", env={"SHARED_TOKEN": "s", "TOKEN": "other"})
    assert got is not None
    assert got.token == "s"
    _, got = run("--folder", "a", env={"TOKEN": "other"})
    assert got is not None
    assert got.token == ""


def test_all_that_is_wrong_is_named_at_once_with_its_variable() -> None:
    result, got = run("--rate", "1", "--limit", "none", env={"TOOL_RUN_CACHE_MIB": "0", "TOOL_RUN_AGAIN": "perhaps"})
    assert (result.exit_code, got) == (2, None)
    assert result.output.splitlines()[3:] == [
        "Error: Missing option '--folder'.",
        "Invalid value for '--rate': 1.0 is not in the range 0<x<1.",
        "Invalid value for '--limit': 'none' is not a valid integer range.",
        "Invalid value for '--again' (TOOL_RUN_AGAIN): 'perhaps' is not a valid boolean. "
        "Recognized values: , 0, 1, f, false, n, no, off, on, t, true, y, yes",
        "Invalid value for '--cache-mib' (TOOL_RUN_CACHE_MIB): 0 is not in the range x>=1.",
    ]


def test_what_does_not_go_together_is_refused() -> None:
    result, got = run("--folder", "a", "--again")
    assert (result.exit_code, got) == (2, None)
    assert result.output.endswith("Error: --again takes --mode sure\n")


def test_the_help_tells_types_bounds_units_and_defaults() -> None:
    said = " ".join(run("--help")[0].output.split())
    for line in (
        "A command.",
        "--folder PATH Where to look. [required]",
        "--rate FLOAT RANGE How often. [default: 0.5; 0<x<1]",
        "--mode [fast|sure] How. [default: fast]",
        "--names TEXT Of whom.",
        "--limit INTEGER RANGE How many. [default: (no limit); x>=1]",
        "--again / --no-again Once more. [default: no-again]",
        "--cache-mib INTEGER RANGE Memory for answers. [default: 64; x>=1]",
    ):
        assert line in said
    assert "clock" not in said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_of_the_product_has_a_help_text(command: click.Command) -> None:
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


def test_the_same_option_has_the_same_words_everywhere() -> None:
    shared = ("bootstrap_servers", "topic", "database_url", "model", "version", "min_effect", "false_page_days")
    said: dict[str, set[Any]] = {name: set() for name in shared}
    for command in COMMANDS:
        for option in command.params:
            if isinstance(option, click.Option) and option.name in shared:
                said[option.name].add((option.help, option.default))
    assert {name: len(texts) for name, texts in said.items()} == dict.fromkeys(shared, 1)
