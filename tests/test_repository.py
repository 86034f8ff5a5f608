"""What the repository and its wheel must hold, and what they must not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("requirements/demo.txt", "requirements/dev.txt")
REQUIREMENTS = (*PRODUCT, "requirements/peers-numpy1.txt", "requirements/peers-numpy2.txt")
REQUIRED = (
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    ".ci/run",
    "agent/wire/reluscope.proto",
    "docs/privacy.md",
    "docs/sql.md",
    "docs/measurements.md",
    "docs/reliability.md",
    *REQUIREMENTS,
)
TARGETS = ("venv", "demo", "test", "lint", "fuzz", "bench", "statistics", "report", "clean", "help")

# Written so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/" + r"(?:root|home/\w+|work|Users/\w+|opt/wheels|tmp/\w)/")
REGISTRY_HOST = re.compile(
    r"files\.pythonhosted|pypi\.org/simple|index-url|find-links|trusted-host|://[^/\s]*(?:mirror|proxy)"
)
GENERATED = re.compile(r"(^|/)(\.|__pycache__|build/|dist/|out/|node_modules)")


def tracked() -> list[Path]:
    """The files under version control and those about to be; from a plain copy, all but what tools have made."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [ROOT / name for name in listing.splitlines() if (ROOT / name).is_file()]
    files = (path for path in ROOT.rglob("*") if path.is_file())
    return [path for path in files if not GENERATED.search(path.relative_to(ROOT).as_posix())]


def lines_with(pattern: re.Pattern[str], files: list[Path]) -> list[str]:
    hits = []
    for path in files:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # an image or another binary file
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                hits.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    return hits


def test_machine_path_is_recognised() -> None:
    assert MACHINE_PATH.search("cp x " + "/home/" + "ann/x")
    assert not MACHINE_PATH.search("~/.cache/x and /var/lib/reluscope and a/work/b")


@pytest.mark.parametrize("name", REQUIRED)
def test_required_file_is_there(name: str) -> None:
    assert (ROOT / name).is_file()
    assert (ROOT / name).stat().st_size > 0


def test_no_machine_paths() -> None:
    assert lines_with(MACHINE_PATH, tracked()) == []


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_lock_file_names_no_registry(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not REGISTRY_HOST.search(text)
    assert "://" not in text


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_is_pinned_with_hashes(name: str) -> None:
    text = re.sub(r"(?m)^\s*#.*\n?", "", (ROOT / name).read_text()).replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line.strip()]
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", entry), entry[:80]


def test_demo_packages_are_the_same_in_development() -> None:
    demo, dev = (set(re.findall(r"(?m)^([a-z0-9._-]+==\S+)", (ROOT / name).read_text())) for name in PRODUCT)
    assert demo - dev == set()


def test_pins_cover_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["agent"], *extras["detector"], *extras["demo"], *extras["dev"]]
    pinned = set(re.findall(r"(?m)^([a-z0-9._-]+)==", (ROOT / "requirements/dev.txt").read_text()))
    assert {re.split(r"[\[<>=~; ]", entry)[0].lower() for entry in wanted} - pinned == set()


def test_gpu_extra_differs_from_agent_only_in_the_runtime() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [entry.replace("onnxruntime-gpu", "onnxruntime") for entry in extras["agent-gpu"]] == extras["agent"]


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_is_documented(target: str) -> None:
    assert re.search(rf"(?m)^{target}:.*## ", (ROOT / "Makefile").read_text())


def test_ci_run_is_executable() -> None:
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_every_command_loads() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["reluscope.commands"]
    installed = {entry.name: entry for entry in entry_points(group="reluscope.commands")}
    if not installed:
        pytest.fail("reluscope is not installed here: make venv")
    assert {name: entry.value for name, entry in installed.items()} == declared
    for entry in installed.values():
        assert entry.load().name == entry.name


def test_wheel_holds_packages_migrations_and_runbooks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in tracked():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("reluscope-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"agent/cli.py", "agent/wire/reluscope.proto", "detector/_migrations/env.py"} <= names
    assert {f"detector/_runbooks/{path.name}" for path in (ROOT / "runbooks").glob("*.md")} <= names
    assert {name.partition("/")[0] for name in names} == {"agent", "detector", "reluscope-0.1.0.dist-info"}
