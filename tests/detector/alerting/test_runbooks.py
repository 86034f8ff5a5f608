from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import psycopg
import pytest

from deploy.local.postgres import psycopg_url
from detector import resources
from detector.alerting import runbooks
from detector.alerting.runbooks import RunbookError
from detector.domain.runbook import Runbook
from tests.detector.samples import MemoryStore

SHIPPED = runbooks.read(resources.runbooks())
TEXT = """---
alert: ReluscopeSample
version: 1
severity: warning
cause: model_change
owner: ml-platform
---

# ReluscopeSample

## Meaning
m

## Impact
i

## Diagnosis
```sh
# not a heading
```

## Mitigation
g
"""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(runbook, code) of every fenced block in that language, its indentation taken off."""
    for runbook in SHIPPED:
        lines: list[str] | None = None
        for line in runbook.body.splitlines():
            if line.strip() == f"```{language}":
                lines = []
            elif line.strip() == "```" and lines is not None:
                yield runbook.name, "\n".join(lines)
                lines = None
            elif lines is not None:
                lines.append(line)


def test_shipped_runbooks_are_locked() -> None:
    assert runbooks.load(resources.runbooks()) == SHIPPED


def test_parse_gives_the_front_matter_and_the_whole_text() -> None:
    runbook = runbooks.parse(TEXT, "ReluscopeSample")
    assert (runbook.version, runbook.severity, runbook.cause, runbook.owner) == (
        1, "warning", "model_change", "ml-platform",
    )  # fmt: skip
    assert runbook.body == TEXT
    assert runbooks.parse(TEXT.replace("\n", "\r\n"), "ReluscopeSample").sha256 == runbook.sha256


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("---\nalert", "alert", "no front matter"),
        ("owner: ml-platform\n", "", "lacks owner"),
        ("owner: ml-platform", "owner:", "lacks owner"),
        ("owner: ml-platform", "owner: a\nowner: b", "of its own"),
        ("owner: ml-platform", "owner: a\nteam: b", "unknown fields: team"),
        ("version: 1", "version: 0", "not a whole number"),
        ("version: 1", "version: 1.5", "not a whole number"),
        ("severity: warning", "severity: page", "none of critical, warning"),
        ("alert: ReluscopeSample", "alert: Other", "must equal the file's name"),
        ("# ReluscopeSample", "# Sample", "exactly one H1"),
        ("## Impact", "## Effect", "must have the headings"),
        ("## Impact\ni\n", "", "must have the headings"),
        ("## Impact\ni\n", "## Impact\n", "nothing is written under Impact"),
        ("## Mitigation\ng\n", "## Mitigation\n", "nothing is written under Mitigation"),
        ("## Impact\ni\n", "## Impact\n\0\n", "a NUL character"),
    ],
)
def test_a_malformed_runbook_is_refused_with_its_file_and_fault(old: str, new: str, message: str) -> None:
    with pytest.raises(RunbookError, match=message) as caught:
        runbooks.parse(TEXT.replace(old, new), "ReluscopeSample")
    assert str(caught.value).startswith("runbooks/ReluscopeSample.md: ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ReluscopeSample.md").write_text(TEXT)
    assert runbooks.lock(tmp_path) == ["ReluscopeSample v1"]
    return tmp_path


def test_a_changed_text_needs_a_raised_version(folder: Path) -> None:
    file = folder / "ReluscopeSample.md"
    file.write_text(TEXT.replace("\ng\n", "\nanother\n"))
    for attempt in (runbooks.load, runbooks.lock):
        with pytest.raises(RunbookError, match=r"the text changed, but it still says version: 1 .*raise the version"):
            attempt(folder)
    file.write_text(file.read_text().replace("version: 1", "version: 2"))
    with pytest.raises(RunbookError, match=r"version 2 is not in runbooks/checksums\.json"):
        runbooks.load(folder)
    assert runbooks.lock(folder) == ["ReluscopeSample v2"]
    assert runbooks.lock(folder) == []
    assert set(runbooks.checksums(folder)["ReluscopeSample"]) == {"1", "2"}
    file.write_text(TEXT.replace("version: 1", "version: 3").replace("\ng\n", "\nx\n"))
    runbooks.lock(folder)
    file.write_text(TEXT.replace("\ng\n", "\nanother\n"))
    with pytest.raises(RunbookError):
        runbooks.lock(folder)


def test_a_gap_in_versions_cannot_be_filled_later(folder: Path) -> None:
    file = folder / "ReluscopeSample.md"
    file.write_text(TEXT.replace("version: 1", "version: 3"))
    runbooks.lock(folder)
    file.write_text(TEXT.replace("version: 1", "version: 2"))
    with pytest.raises(RunbookError, match="older than one committed"):
        runbooks.lock(folder)


def test_other_damage_of_the_folder_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunbookError, match="no runbooks in"):
        runbooks.load(tmp_path / "nowhere")
    (folder / "ReluscopeOther.md").write_bytes(b"\xff\xfe")
    with pytest.raises(RunbookError, match=r"ReluscopeOther\.md: not UTF-8"):
        runbooks.load(folder)
    (folder / "ReluscopeOther.md").unlink()
    (folder / "checksums.json").write_text('{"ReluscopeSample": 1}')
    with pytest.raises(RunbookError, match=r"checksums.json is damaged"):
        runbooks.load(folder)
    digest = runbooks.read(folder)[0].sha256
    (folder / "checksums.json").write_text(json.dumps({"ReluscopeSample": {"1": digest}, "ReluscopeGone": {"1": "x"}}))
    with pytest.raises(RunbookError, match="names runbooks that are gone: ReluscopeGone"):
        runbooks.load(folder)


def test_registration_refuses_what_differs_from_the_registered() -> None:
    store = MemoryStore()
    assert runbooks.register(SHIPPED, store) == {runbook.name: runbook.version for runbook in SHIPPED}
    runbooks.register(SHIPPED, store)
    first = SHIPPED[0]
    changed = Runbook(first.name, first.version, "0" * 64, "other", "critical", first.cause, first.owner)
    with pytest.raises(RunbookError, match="raise the version"):
        runbooks.register([changed], store)
    assert store.books[first.name, first.version] == first


@pytest.mark.parametrize(
    ("url", "pin"),
    [
        ("http://reluscope-detector:8500/runbooks/ReluscopeDeadNeurons/v1", ("ReluscopeDeadNeurons", 1)),
        ("https://host/base/runbooks/ReluscopeDeadNeurons/v12/?x=1#Impact", ("ReluscopeDeadNeurons", 12)),
        ("https://host/runbooks/ReluscopeDeadNeurons", None),
        ("https://host/runbooks/ReluscopeDeadNeurons/v0", None),
        ("https://host/runbooks/ReluscopeDeadNeurons/v99999999999", None),
        ("", None),
    ],
)
def test_pinned(url: str, pin: tuple[str, int] | None) -> None:
    assert runbooks.pinned(url) == pin


def test_sql_in_runbooks_runs_on_the_public_views(database_url: str) -> None:
    statements = list(blocks("sql"))
    assert len(statements) >= 10
    with psycopg.connect(psycopg_url(database_url), autocommit=True) as connection:
        for name, statement in statements:
            try:
                connection.execute(statement.encode())
            except psycopg.Error as error:
                pytest.fail(f"{name}: {error}\n{statement}")


def test_commands_in_runbooks_exist_with_their_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELUSCOPE_DATABASE_URL", "postgresql+psycopg://nobody@localhost/nothing")
    commands = {entry.name: entry for entry in entry_points(group="reluscope.commands")}
    used = set()
    model = tmp_path / "model.onnx"
    model.touch()
    for _, script in blocks("sh"):
        for line in script.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line.replace("/models/MODEL/VERSION/model.onnx", str(model)))
            if program == "reluscope":
                used.add(arguments[0])
                parse(commands[arguments[0]].load(), arguments)
    assert used >= {"inspect", "reference", "report"}


def parse(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """Parses without running; raises click's usage errors."""
    context = command.make_context(arguments[0], list(arguments[1:]), parent)
    with context:
        if isinstance(command, click.Group):
            name, found, rest = command.resolve_command(context, context._protected_args + context.args)
            assert name is not None
            assert found is not None
            parse(found, [name, *rest], context)
