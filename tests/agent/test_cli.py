"""The command `reluscope` finds its parts and says what is missing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import click
import pytest
from click.testing import CliRunner

from agent import cli


def install(monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    found = [EntryPoint(name, value, cli.GROUP) for name, value in entries.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: found)


@click.command()
@click.option("--size")
def sample(size: str | None) -> None:
    """A sample command."""
    click.echo(f"size={size}")


def test_command_is_dispatched(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, sample=f"{__name__}:sample")
    result = CliRunner().invoke(cli.main, ["sample", "--size", "3"])
    assert (result.exit_code, result.output) == (0, "size=3\n")


def test_option_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, sample=f"{__name__}:sample")
    result = CliRunner().invoke(cli.main, ["sample"], env={"RELUSCOPE_SAMPLE_SIZE": "5"})
    assert result.output == "size=5\n"


def test_unknown_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    result = CliRunner().invoke(cli.main, ["nonsense"])
    assert result.exit_code == 2
    assert "No such command 'nonsense'" in result.output


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(entry: EntryPoint) -> object:
        raise ModuleNotFoundError("No module named 'sqlalchemy.orm'", name="sqlalchemy.orm")

    install(monkeypatch, migrate="detector.migrate:command")
    monkeypatch.setattr(EntryPoint, "load", load)
    result = CliRunner().invoke(cli.main, ["migrate"])
    assert result.exit_code == 1
    assert "needs the package 'sqlalchemy': pip install 'reluscope[detector]'" in result.output


def test_help_lists_a_command_whose_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(entry: EntryPoint) -> object:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    install(monkeypatch, detector="detector.service:command")
    monkeypatch.setattr(EntryPoint, "load", load)
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    assert "(needs reluscope[detector])" in result.output


def test_broken_installation_is_not_called_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, agent="agent.no_such_module:command")
    result = CliRunner().invoke(cli.main, ["agent"])
    assert isinstance(result.exception, ModuleNotFoundError)


def test_entry_that_is_no_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, odd="agent.cli:GROUP")
    result = CliRunner().invoke(cli.main, ["odd"])
    assert "is no click command" in result.output


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "agent.cli", "--help"], capture_output=True, text=True, check=True)
    assert "Watch the activations" in done.stdout
