"""Runbooks as versioned content: read, checked, locked by checksum, registered.

A runbook is ``runbooks/<AlertName>.md``: front matter, a title that is the alert's name, four headings. Its version is
part of every alert's URL, so a text may only change together with its version. Two guards hold that: the committed
``checksums.json`` (so that CI fails), and the registry in Postgres (so that a start-up fails).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from detector import resources
from detector.domain.runbook import Runbook

CHECKSUMS = "checksums.json"
HEADINGS = ("Meaning", "Impact", "Diagnosis", "Mitigation")
FIELDS = ("alert", "version", "severity", "cause", "owner")
SEVERITIES = ("critical", "warning")
_NAME = re.compile(r"[A-Z][A-Za-z0-9]{2,80}")
_URL = re.compile(r"/runbooks/(?P<name>[A-Z][A-Za-z0-9]{2,80})/v(?P<version>[1-9][0-9]{0,5})/?(?:[?#].*)?$")


class RunbookError(ValueError):
    """A runbook that may not be served; the message names the file and says what to do."""


class Registry(Protocol):
    """The part of the store that keeps runbooks."""

    def register_runbook(self, runbook: Runbook) -> None: ...
    def runbook(self, name: str, version: int) -> Runbook | None: ...


def split(body: str) -> tuple[dict[str, str], str]:
    """Front matter and the Markdown below it; raises `RunbookError` where there is no front matter."""
    lines = body.split("\n")
    if lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        raise RunbookError("no front matter: the file must begin with a block between two lines of ---")
    end = next(i for i, line in enumerate(lines) if i and line.strip() == "---")
    fields: dict[str, str] = {}
    for line in filter(str.strip, lines[1:end]):
        key, colon, value = line.partition(":")
        if not colon or key.strip() in fields:
            raise RunbookError(f"front matter line {line!r} is not one 'field: value' of its own")
        fields[key.strip()] = value.strip()
    return fields, "\n".join(lines[end + 1 :]).strip() + "\n"


def parse(text: str, name: str) -> Runbook:
    """Checks one runbook's text; ``name`` is the file's stem. Raises `RunbookError`."""
    body = text.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        if "\0" in body:  # Postgres keeps none
            raise RunbookError("the text holds a NUL character; take it out")
        fields, markdown = split(body)
        _check(fields, markdown, name)
    except RunbookError as error:
        raise RunbookError(f"runbooks/{name}.md: {error}") from None
    digest = hashlib.sha256(body.encode()).hexdigest()
    return Runbook(name, int(fields["version"]), digest, body, fields["severity"], fields["cause"], fields["owner"])


def _check(fields: Mapping[str, str], markdown: str, name: str) -> None:
    missing = [field for field in FIELDS if not fields.get(field)]
    if missing:
        raise RunbookError(f"front matter lacks {', '.join(missing)}")
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise RunbookError(f"front matter has unknown fields: {', '.join(unknown)}")
    if fields["alert"] != name or not _NAME.fullmatch(name):
        raise RunbookError(f"alert: {fields['alert']} must equal the file's name, in CamelCase")
    if not re.fullmatch(r"[1-9][0-9]{0,5}", fields["version"]):
        raise RunbookError(f"version: {fields['version']} is not a whole number from 1")
    if fields["severity"] not in SEVERITIES:
        raise RunbookError(f"severity: {fields['severity']} is none of {', '.join(SEVERITIES)}")
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^# +(.+?) *$", prose, re.MULTILINE)
    if titles != [name]:
        raise RunbookError(f"must have exactly one H1, the alert's name; found {titles}")
    headings = tuple(re.findall(r"^## +(.+?) *$", prose, re.MULTILINE))
    if headings != HEADINGS:
        raise RunbookError(f"must have the headings {', '.join(HEADINGS)}, in this order; found {list(headings)}")
    for heading, text in zip(HEADINGS, re.split(r"^## .*$", markdown, flags=re.MULTILINE)[1:], strict=False):
        if not text.strip():
            raise RunbookError(f"nothing is written under {heading}")


def read(folder: Path) -> tuple[Runbook, ...]:
    """Every runbook of ``folder``, by name; checksums are not looked at. Raises `RunbookError`."""
    files = sorted(folder.glob("*.md")) if folder.is_dir() else []
    if not files:
        raise RunbookError(f"no runbooks in {folder}")
    runbooks = []
    for file in files:
        try:
            runbooks.append(parse(file.read_bytes().decode("utf-8"), file.stem))
        except UnicodeDecodeError as error:
            raise RunbookError(f"runbooks/{file.name}: not UTF-8: {error}") from None
    return tuple(runbooks)


def load(folder: Path) -> tuple[Runbook, ...]:
    """Every runbook of ``folder``, held against its checksums. Raises `RunbookError`."""
    runbooks = read(folder)
    locked = checksums(folder)
    for runbook in runbooks:
        known = locked.get(runbook.name, {}).get(str(runbook.version))
        if known is None:
            raise RunbookError(
                f"runbooks/{runbook.name}.md: version {runbook.version} is not in runbooks/{CHECKSUMS}; "
                "run `python -m detector.alerting.runbooks` and commit it"
            )
        if known != runbook.sha256:
            raise RunbookError(_changed(runbook, known))
    if gone := sorted(set(locked) - {runbook.name for runbook in runbooks}):
        raise RunbookError(f"runbooks/{CHECKSUMS} names runbooks that are gone: {', '.join(gone)}")
    return runbooks


def checksums(folder: Path) -> dict[str, dict[str, str]]:
    """name -> version -> sha256 of every version ever committed; empty where the file is missing."""
    file = folder / CHECKSUMS
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
        return {
            str(name): {str(v): str(digest) for v, digest in versions.items()} for name, versions in content.items()
        }
    except (ValueError, AttributeError) as error:
        raise RunbookError(f"runbooks/{CHECKSUMS} is damaged: {error}") from None


def lock(folder: Path) -> list[str]:
    """Adds new versions to the checksums and returns them; never rewrites one, but raises `RunbookError`."""
    locked, added = checksums(folder), []
    for runbook in read(folder):
        versions = locked.setdefault(runbook.name, {})
        if str(runbook.version) not in versions:
            if any(int(version) > runbook.version for version in versions):
                raise RunbookError(f"runbooks/{runbook.name}.md: version {runbook.version} is older than one committed")
            versions[str(runbook.version)] = runbook.sha256
            added.append(f"{runbook.name} v{runbook.version}")
        elif versions[str(runbook.version)] != runbook.sha256:
            raise RunbookError(_changed(runbook, versions[str(runbook.version)]))
    (folder / CHECKSUMS).write_text(json.dumps(locked, indent=2, sort_keys=True) + "\n", "utf-8")
    return added


def register(runbooks: Iterable[Runbook], registry: Registry) -> dict[str, int]:
    """Registers all and returns name -> version; raises `RunbookError` where a registered text differs."""
    versions: dict[str, int] = {}
    for runbook in runbooks:
        registry.register_runbook(runbook)
        # Read back rather than asked before: of two replicas with unlike texts, one must lose.
        stored = registry.runbook(runbook.name, runbook.version)
        if stored is None or stored.sha256 != runbook.sha256:
            raise RunbookError(_changed(runbook, stored.sha256 if stored else "nothing"))
        versions[runbook.name] = runbook.version
    return versions


def pinned(url: str) -> tuple[str, int] | None:
    """The (name, version) that a runbook URL names, or None where it names none."""
    match = _URL.search(url)
    return (match["name"], int(match["version"])) if match else None


def _changed(runbook: Runbook, known: str) -> str:
    return (
        f"runbooks/{runbook.name}.md: the text changed, but it still says version: {runbook.version} "
        f"(registered {known[:12]}, found {runbook.sha256[:12]}); raise the version here and in the rule's runbook_url"
    )


def main() -> None:
    """``python -m detector.alerting.runbooks``: locks new versions of the shipped runbooks."""
    try:
        added = lock(resources.runbooks())
    except RunbookError as error:
        raise SystemExit(str(error)) from None
    sys.stdout.write("".join(f"locked {name}\n" for name in added) or "nothing new\n")


if __name__ == "__main__":
    main()
